"""A key, its value and its source on a screen: as many lines as the value needs, the source beside the last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sftctl.cli.terminal import columns, styled, wrap

VALUE_COLUMNS = 26
"""Where sources begin, counted from the values; a longer value has its source on a line below."""


PAIR = "\x00=\x00"
"""Stands for ` = ` while lines are broken, so that a key and its value stay on one; no value holds a NUL."""


class Look(NamedTuple):
    """Room for names, and whether there is colour and a column of sources."""

    names: int
    colour: bool
    sources: bool = True

    def lines(
        self, name: str, value: str, source: str, *, sign: str = "", name_style: str = "", value_style: str = ""
    ) -> Iterator[str]:
        """`sign` stands before the value (`- `, `+ `); a table of a list has a line of its own."""
        margin = " " * (self.names + 4)
        parts = value.replace("}, {", "},\n {").replace(" = ", PAIR).split("\n")
        width = max(columns() - len(margin) - len(sign), 20)
        texts = [line.replace(PAIR, " = ") for part in parts for line in wrap(part, width=width)] or [""]
        if self.sources and len(sign) + len(texts[-1]) > VALUE_COLUMNS - 2:
            texts.append("")
        for index, text in enumerate(texts):
            left = margin if index else f"  {self._styled(name, name_style)}{margin[len(name) + 2 :]}"
            text = (" " * len(sign) if index else sign) + text
            gap = " " * (VALUE_COLUMNS - len(text))
            is_last = self.sources and index == len(texts) - 1
            right = f"{gap}{self._styled(source, 'cyan')}" if is_last else ""
            yield f"{left}{self._styled(text, value_style)}{right}"

    def heading(self, group: str) -> str:
        return self._styled(f"[{group}]", "bold")

    def _styled(self, text: str, style: str) -> str:
        return styled(text, style, colour=self.colour)
