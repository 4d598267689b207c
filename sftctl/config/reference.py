"""Every setting as a page of the reference, in Markdown: docs/reference/settings.md is made from it."""

from __future__ import annotations

from collections.abc import Iterator

from sftctl.config import rules
from sftctl.config.explain import Explanation, of_leaf
from sftctl.config.leaves import Group, groups

HEAD = """\
# Settings

Every leaf of the configuration. `sftctl config explain KEY` says the same of one, with all its spellings; `sftctl
config init run.toml` writes them as a commented file. Made from `sftctl/config/schema.py`.

A leaf is written `group.name` in TOML and YAML, `SFTCTL_GROUP__NAME` in the environment, `--group.name` or the short
option of the table on the command line, and `{"group.name": value}` in Python. Options go before the environment, the
environment before files, and a file before those that it extends.
"""


def page() -> str:
    """The whole page. A registered group has its section too."""
    sections = (line for group in groups().values() for line in _section(group))
    return (
        "\n".join([HEAD, *sections, "## Rules between settings", "", *(f"- {rule}" for rule in rules.texts())]) + "\n"
    )


def _section(group: Group) -> Iterator[str]:
    yield from (f"## {group.name}", "", group.help, "")
    if group.free:
        return
    yield from ("| leaf | option | type | default | |", "|---|---|---|---|---|")
    explained = [(leaf, of_leaf(leaf)) for leaf in group.leaves]
    for leaf, found in explained:
        option = leaf.options[1]
        cells = (f"`{leaf.name}`", f"`{option}`", _type(found), f"`{found.default}`", found.help)
        yield "| " + " | ".join(_cell(each) for each in cells) + " |"
    yield ""
    for fields in dict.fromkeys(found.fields for _, found in explained if found.fields):
        names = " and ".join(f"`{leaf.path}`" for leaf, found in explained if found.fields == fields)
        yield from (f"An entry of {names} has", "", "| field | type | |", "|---|---|---|")
        yield from (f"| `{name}` | {_cell(kind)} | {_cell(help)} |" for name, kind, help in fields)
        yield ""


def _type(found: Explanation) -> str:
    return ", ".join(filter(None, (found.type, found.limit, found.unit)))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
