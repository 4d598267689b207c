"""What is known of the terminal, and text for it without a library: width, colour, wrapping.

Help and error reports are drawn here and not with rich: importing rich costs as much CPU time as starting
Python itself twice, and an error report should be there before one has noticed that it was computed.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import TextIO

MIN_COLUMNS, DEFAULT_COLUMNS, MAX_COLUMNS = 60, 80, 100
"""Text stays readable between the first and the last; 80 is what a pipe and a plain terminal have."""

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}
_REPORT_STYLES = (
    (r"(error)(:.*)", ("bold red", "bold")),
    (r"(note|warning|stopped)(:.*)", ("bold yellow", "bold")),
    (r"(\s*(?:-->|:::))(.*)", ("blue", "")),
    (r"(\s*\|)(\s*\^+.*)", ("blue", "bold red")),
    (r"(\s*\d*\s*\|)(.*)", ("blue", "")),
    (r"(\s*= \w+:)(.*)", ("bold cyan", "")),
)
"""The forms of a report's lines, compiled where one is coloured."""


def columns() -> int:
    """Width for text: COLUMNS, or the terminal's, or 80; held between 60 and 100.

    As `shutil.get_terminal_size`, without importing the compression libraries that come with it.
    """
    said = os.environ.get("COLUMNS", "")
    width = int(said) if said.isdecimal() else 0
    if not width:
        try:
            width = os.get_terminal_size(1).columns
        except OSError:
            width = DEFAULT_COLUMNS
    return min(max(width or DEFAULT_COLUMNS, MIN_COLUMNS), MAX_COLUMNS)


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a screen that a person looks at and that can be drawn on."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colour(stream: TextIO) -> bool:
    """NO_COLOR (https://no-color.org) switches colour off, FORCE_COLOR on; else a terminal has it."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or is_terminal(stream)


def styled(text: str, style: str, *, colour: bool) -> str:
    """`text` between the escape codes of `style` ("bold red"), or as it is."""
    if not colour or not style or not text:
        return text
    codes = ";".join(_STYLES[word] for word in style.split())
    return f"\x1b[{codes}m{text}\x1b[0m"


def colour_report(report: str, *, colour: bool) -> str:
    """An error report, its lines coloured by their form: the words stay exactly the same."""
    return "\n".join(_colour_line(line) for line in report.split("\n")) if colour else report


def _colour_line(line: str) -> str:
    for form, styles in _REPORT_STYLES:
        match = re.fullmatch(form, line)
        if match is not None:
            return "".join(styled(part, style, colour=True) for part, style in zip(match.groups(), styles, strict=True))
    return line


def wrap(text: str, *, width: int, indent: str = "") -> list[str]:
    """Lines of at most `width` columns; words are kept whole, a word longer than the line too."""
    return textwrap.wrap(
        text,
        width=width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, colour: bool = False) -> list[str]:
    """Columns as wide as what is in them, two spaces apart; one whose name begins with > is set to the right."""
    names = [name.removeprefix(">") for name in head]
    widths = [max(len(row[column]) for row in (names, *rows)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if name.startswith(">") else cell.ljust(width)
            for cell, width, name in zip(row, widths, head, strict=True)
        )
        return "  ".join(cells).rstrip()

    return [styled(line(names), "bold", colour=colour), *(line(row) for row in rows)]


def write(text: str, *, stream: TextIO | None = None) -> None:
    """Print `text` as it is, whatever the stream's encoding: what it cannot hold is replaced, never a crash."""
    stream = sys.stdout if stream is None else stream
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
