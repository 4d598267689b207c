"""A frozen, ordered, hashable mapping: what a free table of a file becomes inside a frozen bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Table(Mapping[str, Any]):
    """Keys in the order they were written; values frozen by `freeze`. Equal to any mapping with equal items."""

    __slots__ = ("_items",)
    _items: dict[str, Any]

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        object.__setattr__(self, "_items", {key: freeze(value) for key, value in (items or {}).items()})

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __setitem__(self, key: str, value: object) -> None:
        raise TypeError(f"{key} is in a table of a bundle, which is frozen: sftctl.evolve makes a changed copy")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a table of a bundle is frozen: sftctl.evolve makes a changed copy")

    def __reduce__(self) -> tuple[type[Table], tuple[dict[str, Any]]]:
        return (Table, (dict(self._items),))

    def __repr__(self) -> str:
        from sftctl.config.secrets import looks_secret  # a repr is rare, and this module is in every import

        shown = {key: "****" if looks_secret(key, value) else value for key, value in self._items.items()}
        return repr(shown)


def freeze(value: Any) -> Any:
    """Lists become tuples, mappings become tables, all the way down; `[{"a": [1]}]` -> `(Table(a=(1,)),)`."""
    if isinstance(value, Mapping):
        return value if isinstance(value, Table) else Table(value)
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """The way back, for writers and for libraries that want dicts and lists."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [thaw(item) for item in value]
    return value
