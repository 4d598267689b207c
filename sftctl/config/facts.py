"""What a rule may ask: the bundle, and who set which of its leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from sftctl.config.leaves import leaves
from sftctl.config.schema import Bundle
from sftctl.config.sources.items import Item, origin_at
from sftctl.errors import Origin


@attrs.frozen(eq=False)
class Facts:
    """A bundle, and who said what. A leaf that nobody set has no entry in `items` and `ranks`."""

    bundle: Bundle
    items: Mapping[str, Item]
    ranks: Mapping[str, int]

    def value(self, path: str) -> Any:
        group, _, name = path.partition(".")
        return getattr(getattr(self.bundle, group), name)

    def origin(self, path: str, *inside: str | int) -> Origin:
        if path not in self.items:
            return Origin("default")
        return origin_at(self.items[path], inside)

    def is_set(self, path: str) -> bool:
        return path in self.ranks and self.value(path) != leaves()[path].default

    def later(self, first: str, second: str) -> tuple[str, str]:
        """The two paths, the one with more say first: it is the one to complain about."""
        ranked = self.ranks.get(first, -1) >= self.ranks.get(second, -1)
        return (first, second) if ranked else (second, first)
