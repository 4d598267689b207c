"""`sftctl config show`: the resolved configuration, and where each value comes from."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from sftctl.cli.command import Command
from sftctl.cli.files import FILES
from sftctl.cli.options import Invocation
from sftctl.cli.resolving import resolve_invocation
from sftctl.cli.switches import Example, Switch, Usage
from sftctl.cli.terminal import columns, has_colour, styled, wrap, write
from sftctl.config.leaves import groups
from sftctl.config.resolve import Node, Resolved
from sftctl.config.secrets import mask
from sftctl.config.values import show_value

FORMATS = ("table", "toml", "yaml", "json")

USAGE = Usage(
    summary="Show the configuration that the files, the environment and the options make together.",
    about="As TOML, YAML or JSON it loads back equal: what is shown is a file. Secrets show as ****.",
    words=FILES,
    switches=(
        Switch("origin", "Where each value comes from, and what it shadows."),
        Switch("changed", "Only what differs from the defaults."),
        Switch("format", "How it is written. [table]", choices=FORMATS),
    ),
    examples=(
        Example("sftctl config show run.toml --changed", "What a file sets:"),
        Example("sftctl config show base.toml run.toml --learning-rate 1e-4 --origin", "Which of them wins:"),
        Example("sftctl config show run.toml --format yaml > run.yaml", "The same file as YAML:"),
    ),
    takes_leaves=True,
)


def run(invocation: Invocation) -> None:
    resolved = resolve_invocation(invocation)
    if invocation.text("format", "table") == "table":
        shown = _table(resolved, origin=invocation.on("origin"), changed=invocation.on("changed"))
        write("\n".join(shown))
        return
    from sftctl.config.show import dump  # the writers of TOML, YAML and JSON

    write(dump(resolved, invocation.text("format"), changed=invocation.on("changed")).rstrip("\n"))


def _table(resolved: Resolved, *, origin: bool, changed: bool) -> Iterator[str]:
    """Groups with their keys and values; with `origin` each source below the value it gave, the winner first."""
    colour = has_colour(sys.stdout)
    shown = [node for node in resolved.nodes.values() if not (changed and node.value == _default(node))]
    if not shown:
        yield "nothing differs from the defaults"
    names = max((len(_name(node)) for node in shown), default=0)
    first = True
    for group in groups():
        nodes = [node for node in shown if node.path.partition(".")[0] == group]
        if not nodes:
            continue
        if not first:
            yield ""
        first = False
        yield styled(f"[{group}]", "bold", colour=colour)
        for node in nodes:
            yield from _rows(node, names, origin=origin, colour=colour)


def _rows(node: Node, names: int, *, origin: bool, colour: bool) -> Iterator[str]:
    value = show_value(mask(node.value, node.path.split(".")))
    is_default = node.origin.kind == "default"
    head, *rest = wrap(value, width=max(columns() - names - 4, 20)) or [""]
    name = styled(f"{_name(node):<{names}}", "" if is_default else "green", colour=colour)
    yield f"  {name}  {styled(head, 'dim' if is_default else '', colour=colour)}"
    yield from (f"  {'':<{names}}  {line}" for line in rest)
    if not origin or is_default:
        return
    yield f"  {'':<{names}}  {styled(f'from {node.origin}', 'cyan', colour=colour)}"
    for each in node.shadowed:
        over = f"over {show_value(mask(each.value, node.path.split('.')))} from {each.origin}"
        yield f"  {'':<{names}}  {styled(over, 'dim', colour=colour)}"


def _name(node: Node) -> str:
    return node.path.partition(".")[2]


def _default(node: Node) -> object:
    """The last thing that a value shadows is the default; a value that shadows nothing is one itself."""
    return node.shadowed[-1].value if node.shadowed else node.value


command = Command("show", USAGE, run)
