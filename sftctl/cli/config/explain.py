"""`sftctl config explain [KEY]`: what a setting means, what it takes, and how it is spelt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sftctl.cli.command import Command
from sftctl.cli.options import Invocation
from sftctl.cli.switches import Example, Usage, Words
from sftctl.cli.terminal import columns, has_colour, styled, wrap, write
from sftctl.config.leaves import by_flat, groups, leaves

if TYPE_CHECKING:
    from sftctl.config.explain import Explanation, GroupOverview

_LABEL_COLUMNS = 12


def _keys() -> tuple[str, ...]:
    return (*groups(), *leaves(), *by_flat())


USAGE = Usage(
    summary="Explain a setting: its meaning, type, default, choices, spellings and rules.",
    about="Without KEY, every setting in a line. KEY may be a group too.",
    words=Words(
        "KEY",
        "learning_rate, optim.learning_rate, --learning-rate, optim.",
        most=1,
        candidates=_keys,
        may_be_options=True,
    ),
    examples=(
        Example("sftctl config explain learning_rate", "One setting:"),
        Example("sftctl config explain optim", "A group of them:"),
    ),
)


def run(invocation: Invocation) -> None:
    from sftctl.config.explain import Explanation, everything, explain  # which the help does not need

    if not invocation.words:
        write("\n\n".join("\n".join(_overview(each)) for each in everything()))
        return
    found = explain(invocation.words[0])
    write("\n".join(_explanation(found) if isinstance(found, Explanation) else _overview(found)))


def _overview(group: GroupOverview) -> Iterator[str]:
    """A group, and each of its leaves with default and help."""
    colour = has_colour(sys.stdout)
    yield styled(f"[{group.name}]", "bold", colour=colour) + f" {group.help}"
    for path, type_text, default, help in group.leaves:
        name = styled(path, "green", colour=colour)
        yield f"  {name} = {default}"
        yield from wrap(f"{help} {type_text[:1].upper()}{type_text[1:]}.", width=columns(), indent="      ")


def _explanation(leaf: Explanation) -> Iterator[str]:
    colour = has_colour(sys.stdout)
    yield styled(leaf.path, "bold green", colour=colour)
    yield from wrap(leaf.help, width=columns(), indent="  ")
    yield ""
    yield from _fact("type", leaf.type, colour=colour)
    if leaf.limit:
        yield from _fact("must be", leaf.limit, colour=colour)
    if leaf.unit:
        yield from _fact("unit", leaf.unit, colour=colour)
    yield from _fact("default", leaf.default, colour=colour)
    if leaf.choices:
        yield from _fact("choices", ", ".join(leaf.choices), colour=colour)
    if leaf.fields:
        yield from ("", styled("each entry has", "bold", colour=colour))
        for name, type_text, help in leaf.fields:
            yield from _fact(name, f"{help} {type_text[:1].upper()}{type_text[1:]}.", colour=colour)
    yield from ("", styled("how it is written", "bold", colour=colour))
    for source, text in leaf.spellings:
        yield f"  {source:<{_LABEL_COLUMNS}}  {text}"  # to be copied: never wrapped
    if leaf.rules:
        yield from ("", styled("rules", "bold", colour=colour))
        for rule in leaf.rules:
            head, *rest = wrap(rule, width=columns() - 4)
            yield f"  - {head}"
            yield from (f"    {line}" for line in rest)


def _fact(label: str, text: str, *, colour: bool) -> Iterator[str]:
    head, *rest = wrap(text, width=columns() - _LABEL_COLUMNS - 4) or [""]
    yield f"  {styled(f'{label:<{_LABEL_COLUMNS}}', 'cyan', colour=colour)}  {head}"
    yield from (f"  {'':<{_LABEL_COLUMNS}}  {line}" for line in rest)


command = Command("explain", USAGE, run)
