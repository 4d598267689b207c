"""Problems as a report in plain text: the path, what is wrong, the line with a mark below it, what to do.

    error: optim.shedule: unknown key
      --> bad.toml:3:1
       |
     3 | shedule = "cosine"
       | ^^^^^^^
       = help: did you mean 'lr_scheduler_type'?

The command line colours what this module lays out; it adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sftctl.errors import Origin, Problem, SftctlError

MAX_WIDTH = 100
"""Columns of a source line that are shown; a longer one is cut around its mark."""


def render(error: SftctlError) -> str:
    """The whole report of an error: every problem, then how many there are."""
    blocks = ["\n".join(lines(problem)) for problem in error.problems]
    count = len(error.problems)
    if count > 1:
        blocks.append(f"{count} problems")
    return "\n\n".join(blocks)


def render_notes(notes: Sequence[Problem]) -> str:
    """Notes, in the same form: what was noticed and is no error."""
    return "\n\n".join("\n".join(lines(note, word="note")) for note in notes)


def lines(problem: Problem, *, word: str = "error") -> Iterator[str]:
    """The lines of one problem."""
    place = f"{problem.path}: " if problem.path else ""
    yield f"{word}: {place}{harmless(problem.message)}"
    margin = 1
    if problem.origin is not None and problem.origin.kind != "default":
        margin = len(str(max(each.line or 0 for each in (problem.origin, *problem.related)))) + 1
        yield from _snippet(problem.origin, margin, "-->")
    for each in problem.related:
        if each.kind != "default":
            yield from _snippet(each, margin, ":::")
    if problem.help:
        yield f"{' ' * margin} = help: {harmless(problem.help)}"


def harmless(text: str) -> str:
    """Text that may come from data, without what moves a cursor or recolours a terminal: pictures (␛) in its place."""
    return text.translate(_PICTURES)


_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in b"\n\t"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def _snippet(origin: Origin, margin: int, arrow: str) -> Iterator[str]:
    name = "" if origin.kind in ("file", "recipe") else _KINDS.get(origin.kind, "")
    pad = " " * margin
    yield f"{pad}{arrow} {name}{origin}"
    if origin.text is None:
        return
    column = origin.column or 1
    width = max(1, (origin.end_column or column + 1) - column)
    text, column, width = _window(origin.text, column, width)
    number = "" if origin.line is None or origin.kind in ("env", "option", "set") else str(origin.line)
    yield f"{pad} |"
    yield f"{number:>{margin}} | {text}".rstrip()
    yield f"{pad} | {' ' * (column - 1)}{'^' * width}"


_KINDS = {"env": "environment variable ", "option": "option ", "set": "option ", "python": ""}


def _window(text: str, column: int, width: int) -> tuple[str, int, int]:
    """A line that fits, tabs and control characters as one column each, and where its mark now is."""
    text = "".join(character if character.isprintable() else " " for character in text)
    start = 0
    if len(text) > MAX_WIDTH:
        start = max(0, min(column - 1 - MAX_WIDTH // 3, len(text) - MAX_WIDTH))
    cut = text[start : start + MAX_WIDTH]
    if start > 0:
        cut = "..." + cut[3:]
    if start + MAX_WIDTH < len(text):
        cut = cut[:-3] + "..."
    column -= start
    return cut, column, max(1, min(width, len(cut) - column + 1))
