"""The flat table of leaves: what options, environment, help, show, init, explain and schema iterate over.

Built once from the schema and the registered groups, and again after a group was registered. Nothing else
reads attrs metadata. An entry of an array of tables (`data.datasets`) has leaves of its own; they are
reached by `entry_leaves` and have no option.

    leaves()["optim.learning_rate"]     by path, in the order of the schema
    by_flat()["learning_rate"]          by the short option's name
    groups()["optim"]                   a group with its help and its leaves; `env` is a free one
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import attrs

from sftctl.config import registry
from sftctl.config.limits import Limit, NotEmpty
from sftctl.config.schema import BUILT_IN_GROUPS

ENV = "env"
"""The group that is a free table of `NAME = "text"`."""


class Leaf(NamedTuple):
    """One setting, and all that is known about it.

    `annotation` is the resolved type, `base` the same without None, `element` the type of a list's items
    (of the first, where the length is fixed: `length`). `default` is `attrs.NOTHING` for what an entry must say.
    `choices` are the values of a Literal, also those of a list's items. `words` are values of a path that
    are not one.
    """

    path: str
    group: str
    name: str
    flat: str
    annotation: Any
    base: Any
    optional: bool
    default: Any
    help: str
    unit: str | None
    choices: tuple[Any, ...]
    limit: Limit | None
    not_empty: bool
    is_path: bool
    may_be_hub_id: bool
    words: tuple[str, ...]
    common: bool
    is_tuple: bool
    is_table: bool
    element: Any
    length: int | None

    @property
    def is_flag(self) -> bool:
        """True for `--name / --no-name`."""
        return self.base is bool

    @property
    def is_entries(self) -> bool:
        """True for an array of tables: a tuple of an attrs class."""
        return self.is_tuple and attrs.has(self.element)

    @property
    def value_type(self) -> Any:
        """The type of a free table's values: Any, or str."""
        assert self.is_table
        return typing.get_args(self.base)[1]

    @property
    def required(self) -> bool:
        return self.default is attrs.NOTHING

    @property
    def options(self) -> tuple[str, str]:
        """Both spellings: `--optim.learning-rate`, `--learning-rate`."""
        return f"--{self.path.replace('_', '-')}", f"--{self.flat.replace('_', '-')}"

    @property
    def env(self) -> str:
        return f"SFTCTL_{self.group}__{self.name}".upper()

    @property
    def type_text(self) -> str:
        """The type in words: `whole number or none`, `list of text`, `one of nll, dft`."""
        return _type_text(self.base) + (" or none" if self.optional else "")


class Group(NamedTuple):
    """A table of the configuration. `free` is `env`: any name, no leaves."""

    name: str
    help: str
    cls: Any
    leaves: tuple[Leaf, ...]
    free: bool = False
    built_in: bool = True


def leaves() -> Mapping[str, Leaf]:
    """Every leaf by its path, in the order of the schema, registered groups last."""
    return _current().leaves


def by_flat() -> Mapping[str, Leaf]:
    """Every leaf by its flat name: `model_name_or_path`."""
    return _current().flat


def groups() -> Mapping[str, Group]:
    """Every group by its name: built in, `env`, registered."""
    return _current().groups


def find(path: str) -> Leaf | None:
    """The leaf of a path: `optim.learning_rate`, and with an entry's own field `data.datasets[1].path`."""
    known = leaves()
    if path in known:
        return known[path]
    stem, bracket, rest = path.partition("[")
    if not bracket or stem not in known or not known[stem].is_entries:
        return None
    return entry_leaves(known[stem]).get(rest.partition("].")[2])


@functools.cache
def entry_leaves(leaf: Leaf) -> Mapping[str, Leaf]:
    """The leaves of one entry of an array of tables, by their names: `path`, `columns`, ..."""
    assert leaf.is_entries
    return {each.name: each for each in read_class(leaf.element, f"{leaf.path}[]")}


def read_class(cls: Any, path: str) -> Iterator[Leaf]:
    """The leaves of an attrs class, from its fields and their metadata."""
    if any(isinstance(field.type, str) for field in attrs.fields(cls)):
        attrs.resolve_types(cls)  # once: cattrs finds the types resolved too
    for field in attrs.fields(cls):
        annotation = field.type
        base, optional = strip_none(annotation)
        is_tuple = typing.get_origin(base) is tuple
        arguments = typing.get_args(base) if is_tuple else ()
        element = arguments[0] if is_tuple else None
        meta = field.metadata
        yield Leaf(
            path=f"{path}.{field.name}",
            group=path,
            name=field.name,
            flat=meta.get("flat") or field.name,
            annotation=annotation,
            base=base,
            optional=optional,
            # attrs types Factory as a function.
            default=field.default.factory() if isinstance(field.default, attrs.Factory) else field.default,  # type: ignore[arg-type]
            help=meta.get("help") or "",
            unit=meta.get("unit"),
            choices=_choices(element if is_tuple else base),
            limit=field.validator if isinstance(field.validator, Limit) else None,
            not_empty=isinstance(field.validator, NotEmpty),
            is_path=bool(meta.get("is_path")),
            may_be_hub_id=bool(meta.get("may_be_hub_id")),
            words=tuple(meta.get("words") or ()),
            common=bool(meta.get("common")),
            is_tuple=is_tuple,
            is_table=typing.get_origin(base) is not None and not is_tuple and not _choices(base),
            element=element,
            length=len(arguments) if is_tuple and Ellipsis not in arguments else None,
        )


def strip_none(annotation: Any) -> tuple[Any, bool]:
    """`int | None` -> (int, True); `int` -> (int, False)."""
    if typing.get_origin(annotation) not in (types.UnionType, typing.Union):
        return annotation, False
    rest = [each for each in typing.get_args(annotation) if each is not type(None)]
    assert len(rest) == 1, f"a leaf has one type beside None: {annotation}"
    return rest[0], True


class _Tables(NamedTuple):
    leaves: Mapping[str, Leaf]
    flat: Mapping[str, Leaf]
    groups: Mapping[str, Group]


def _current() -> _Tables:
    registry.load_installed()
    return _tables(registry.version())


@functools.lru_cache(maxsize=1)
def _tables(version: int) -> _Tables:
    groups = {
        name: Group(name=name, help=(cls.__doc__ or "").strip(), cls=cls, leaves=tuple(read_class(cls, name)))
        for name, cls in BUILT_IN_GROUPS.items()
    }
    groups[ENV] = Group(
        name=ENV,
        help="Environment variables, set before torch starts unless the caller has them already.",
        cls=None,
        leaves=(),
        free=True,
    )
    for name, cls in registry.registered().items():
        own = tuple(read_class(cls, name))
        help = (cls.__doc__ or "").strip().partition("\n")[0]
        groups[name] = Group(name=name, help=help, cls=cls, leaves=own, built_in=False)
    every = {leaf.path: leaf for group in groups.values() for leaf in group.leaves}
    return _Tables(leaves=every, flat={leaf.flat: leaf for leaf in every.values()}, groups=groups)


def _choices(base: Any) -> tuple[Any, ...]:
    return typing.get_args(base) if typing.get_origin(base) is Literal else ()


def with_article(leaf: Leaf) -> str:
    """The type in a sentence: `a number`, `a list of text`, `text`."""
    text = leaf.type_text
    return f"a {text}" if text.startswith(("number", "whole", "list", "table")) else text


_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "anything"}


def _type_text(base: Any) -> str:
    if base in _WORDS:
        return _WORDS[base]
    origin, arguments = typing.get_origin(base), typing.get_args(base)
    if origin is Literal:
        return "one of " + ", ".join(show_choice(each) for each in arguments)
    if origin is tuple:
        many = "list of" if Ellipsis in arguments else f"list of {len(arguments)}:"
        return f"{many} {_type_text(arguments[0])}"
    return "table"


def show_choice(value: Any) -> str:
    """A choice as a file writes it: true, false, selective."""
    return str(value).lower() if isinstance(value, bool) else str(value)
