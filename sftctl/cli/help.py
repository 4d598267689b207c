"""The help texts: plain text, wrapped to the terminal, every name in full at 80 columns.

The help of a command that takes leaves says first what one mostly needs, under the short spelling, then all
other leaves by group, under the full one. Both spellings always work. Made from the schema; only the
examples are written by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sftctl.cli.leaf_options import SUGAR, can_be_true, metavar
from sftctl.cli.switches import Example, Usage
from sftctl.cli.terminal import columns, has_colour, styled, wrap
from sftctl.config.leaves import Group, Leaf, groups, show_choice

if TYPE_CHECKING:
    from sftctl.cli import command

_NAME_COLUMNS = 34
"""Room for a name and its value; a longer one has a line to itself."""

_LABEL_COLUMNS = 56
_FIRST_GROUPS = ("model", "data", "sft", "optim", "train", "peft")
_SUGAR_OF = {"data.datasets": "--dataset", "data.eval_datasets": "--eval-dataset"}


def group_help(path: str, group: command.Group) -> str:
    """The help of a group of commands: what to start with, the commands, the group's own options."""
    page = _Page()
    page.title(path, f"{path} COMMAND …", group.about)
    page.examples(group.examples)
    page.heading("Commands")
    for name, entry in group.entries.items():
        page.entry(name, entry.summary, name_columns=12)
    page.heading("Options")
    for name, option in group.options.items():
        page.entry(name, option.help, name_columns=24)
    page.entry("-h, --help", "Show this text; after a command, the text of that command.", name_columns=24)
    return page.text()


def command_help(path: str, usage: Usage) -> str:
    """The help of one command."""
    page = _Page()
    words = f" {usage.words.label}" if usage.words else ""
    page.title(path, f"{path}{words} [OPTIONS]", usage.summary)
    page.paragraph(usage.about)
    page.examples(usage.examples)
    if usage.words:
        page.heading("Arguments")
        page.entry(usage.words.label, usage.words.help, name_columns=12)
    page.heading("Options of this command")
    for switch in usage.switches:
        page.entry(switch.label, switch.help)
    page.entry("-h, --help", "Show this text.")
    if usage.lists_leaves:
        _leaf_sections(page)
    elif usage.takes_leaves:
        page.heading("Settings")
        page.paragraph("Every option of `sftctl train` that sets a key works here too: see `sftctl train --help`.")
    return page.text()


def _leaf_sections(page: _Page) -> None:
    page.heading("What one mostly needs")
    for option in ("--recipe", "--set"):
        _sugar(page, option)
    for name in (*_FIRST_GROUPS, *(name for name in groups() if name not in _FIRST_GROUPS)):
        for leaf in groups()[name].leaves:
            if not leaf.common:
                continue
            if leaf.is_entries:
                _sugar(page, _SUGAR_OF[leaf.path])
            else:
                _leaf(page, leaf, leaf.options[1])
    page.heading("All other settings, by group")
    page.paragraph(
        "Each has two spellings, with its group and without: --optim.weight-decay and --weight-decay are the "
        "same, and so are - and _ in a name. A list is given by repeating the option. "
        "`sftctl config explain KEY` says more of one."
    )
    for group in groups().values():
        _group_section(page, group)


def _group_section(page: _Page, group: Group) -> None:
    page.heading(f"[{group.name}]", group.help)
    if group.free:
        page.entry(f"--set {group.name}.NAME=TEXT", "One variable; again for more.")
    for leaf in group.leaves:
        if not leaf.common:
            _leaf(page, leaf, leaf.options[0])
    above = [leaf.options[0] for leaf in group.leaves if leaf.common]
    if above:
        page.entry("above:", " ".join(above), name_columns=8)


def _sugar(page: _Page, option: str) -> None:
    value, help = SUGAR[option]
    page.entry(f"{option} {value}", help)


def _leaf(page: _Page, leaf: Leaf, option: str) -> None:
    """A leaf's entry; a choice too long for a line is listed in the help instead."""
    if leaf.is_flag:
        return page.entry(f"--[no-]{option.removeprefix('--')}", _help(leaf))
    value, help = metavar(leaf), _help(leaf)
    if leaf.choices and len(option) + len(value) > _LABEL_COLUMNS:
        value, help = "CHOICE", _help(leaf, f" One of {', '.join(show_choice(choice) for choice in leaf.choices)}.")
    return page.entry(f"{option}[={value}]" if can_be_true(leaf) else f"{option} {value}", help)


def _help(leaf: Leaf, choices: str = "") -> str:
    says_nothing = leaf.default is None or leaf.default is False or leaf.default in ((), {})
    default = "" if says_nothing else f" [{_default(leaf.default)}]"
    return f"{leaf.help}{choices}{default}"


def _default(value: object) -> str:
    if value is True:
        return "on"
    if isinstance(value, tuple):
        return ", ".join(_default(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else show_choice(value)


class _Page:
    """Lines of a help text, as wide as the terminal."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._width = columns()
        self._colour = has_colour(sys.stdout)

    def title(self, path: str, usage: str, summary: str) -> None:
        self._lines += [f"{styled('Usage:', 'bold', colour=self._colour)} {usage}", ""]
        self._lines += wrap(summary, width=self._width)

    def paragraph(self, text: str) -> None:
        for part in filter(None, text.split("\n\n")):
            self._lines += ["", *wrap(part, width=self._width, indent="  ")]

    def heading(self, text: str, help: str = "") -> None:
        line = f"{text} {help}" if help else text
        head, *rest = wrap(line, width=self._width)
        shown = styled(text, "bold", colour=self._colour) + head[len(text) :]
        self._lines += ["", shown, *rest]

    def examples(self, examples: Iterable[Example]) -> None:
        for each in examples:
            self._lines += ["", *wrap(each.what, width=self._width, indent="  ")]
            self._lines.append("    " + styled(f"$ {each.line}", "cyan", colour=self._colour))

    def entry(self, name: str, help: str, *, name_columns: int = _NAME_COLUMNS) -> None:
        """A name and its help beside it, or below where the name is too long to stand beside anything."""
        texts = wrap(help, width=self._width - name_columns - 4) or [""]
        if len(name) > name_columns:
            self._lines += [f"  {self._name(name)}"]
        else:
            self._lines += [f"  {self._name(name)}{' ' * (name_columns - len(name))}  {texts.pop(0)}".rstrip()]
        self._lines += [" " * (name_columns + 4) + text for text in texts]

    def _name(self, name: str) -> str:
        option, space, value = name.partition(" ")
        return styled(option, "green", colour=self._colour) + space + value

    def text(self) -> str:
        return "\n".join(self._lines)
