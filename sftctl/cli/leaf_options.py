"""Leaves of the schema as options: which option means which leaf, and what is said of one that means none."""

from __future__ import annotations

from collections.abc import Iterable

from sftctl.cli.switches import Usage
from sftctl.config.leaves import Leaf, by_flat, leaves, show_choice
from sftctl.config.nearest import nearest
from sftctl.errors import Origin, Problem

SUGAR = {
    "--set": ("PATH=VALUE", "Set any key; PATH+=VALUE appends to a list, ~PATH goes back to the default."),
    "--recipe": ("NAME", "A recipe that comes with sftctl; the same as the word recipe:NAME."),
    "--dataset": (
        "PATH",
        "A source to train on: file, folder, Hub id, or {path=…, columns={…}}. Again for more.",
    ),
    "--eval-dataset": ("PATH", "One source to evaluate on."),
}
"""Options of a command that takes leaves which are no leaf's own."""


def find(key: str) -> Leaf | None:
    """The leaf of `optim.learning_rate` or `learning_rate`, as it stands in an option without its dashes."""
    return leaves().get(key) or by_flat().get(key)


def find_negated(key: str) -> Leaf | None:
    """The leaf that `no_packing`, `no_sft.packing` or `sft.no_packing` makes false."""
    group, dot, name = key.rpartition(".")
    if key.startswith("no_"):
        leaf = find(key.removeprefix("no_"))
    elif name.startswith("no_"):
        leaf = find(f"{group}{dot}{name.removeprefix('no_')}")
    else:
        return None
    return leaf if leaf is not None and can_be_true(leaf) else None


def can_be_true(leaf: Leaf) -> bool:
    """Whether the bare option means something: flags, and a choice that has `true` among others."""
    return leaf.is_flag or True in leaf.choices


def values(leaf: Leaf) -> tuple[str, ...]:
    """The words that the leaf takes, where they can be listed: for completion, and to know a value from a file."""
    listed = ("true", "false") if leaf.is_flag else tuple(show_choice(choice) for choice in leaf.choices)
    return (*listed, *leaf.words, *(("none",) if leaf.optional and listed else ()))


def metavar(leaf: Leaf) -> str:
    """What stands for a value in the help: `INT`, `PATH`, `nll|dft`."""
    if leaf.choices:
        return "|".join(show_choice(choice) for choice in leaf.choices)
    if leaf.is_table:
        return "{KEY=VALUE}"
    if leaf.is_path or leaf.is_entries:
        return "PATH"
    return {bool: "true|false", int: "INT", float: "FLOAT"}.get(leaf.element if leaf.is_tuple else leaf.base, "TEXT")


def unknown(typed: str, usage: Usage, *, command: str) -> Problem:
    """The problem of an option that is not there: what it is close to, or that it is only the beginning of one."""
    help = _meant(typed, usage) or f"'{command} --help' lists the options"
    return Problem(typed, "unknown option", Origin("option", typed), help)


def _meant(typed: str, usage: Usage) -> str | None:
    own = [switch.option for switch in usage.switches] + ["--help"]
    known = [*own, *SUGAR, *_spellings()] if usage.takes_leaves else own
    wanted = typed.replace("_", "-")
    begun = sorted({option for option in known if option.startswith(wanted)}, key=len) if len(wanted) > 3 else []
    if begun:
        others = f" (or {len(begun) - 1} others)" if len(begun) > 1 else ""
        return f"options are not abbreviated: did you mean '{begun[0]}'{others}?"
    near = nearest(wanted, own, cutoff=0.75)
    if near is not None:
        return f"did you mean '{near}'?"
    negated = find(typed[5:].replace("-", "_")) if wanted.startswith("--no-") and usage.takes_leaves else None
    if negated is not None:
        to_none = f": write '{negated.options[1]}=none'" if negated.optional else ""
        return f"'{negated.path}' is not on or off{to_none}"
    if usage.takes_leaves and typed.startswith("--"):
        from sftctl.config.suggest import for_option  # all names of other trainers: only a mistake needs them

        return for_option(typed)
    return None


def _spellings() -> Iterable[str]:
    for leaf in leaves().values():
        full, flat = leaf.options
        yield from (flat, full)
        if can_be_true(leaf):
            yield f"--no-{flat.removeprefix('--')}"
