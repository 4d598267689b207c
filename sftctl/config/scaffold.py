"""`config init`: a commented file with every setting, its help, type, default and choices.

What differs from the defaults is said; every default stands there as a comment, ready to be changed. The file
loads equal to the bundle that it was made from.

    # Peak learning rate. A number > 0.
    # learning_rate = 2e-05
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import textwrap
from collections.abc import Iterator
from typing import Any, Literal

from sftctl.config import recipes, registry
from sftctl.config.leaves import Group, Leaf, groups, show_choice
from sftctl.config.resolve import resolve, value_of
from sftctl.config.schema import Bundle
from sftctl.config.show import changed_paths, plain_value
from sftctl.config.values import quoted, show_key, show_value
from sftctl.errors import ConfigError, Problem

Format = Literal["toml", "yaml"]

MINIMAL = {
    "model.name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "data.datasets": [{"path": "train.jsonl"}],
    "sft.packing": True,
    "optim.learning_rate": 2e-5,
    "train.num_train_epochs": 3.0,
}
"""What one writes first, in the order of the file; the paths are to be replaced."""


def scaffold(bundle: Bundle, format: Format = "toml", *, folder: str | None = None) -> str:
    """Every leaf of a bundle with its comment. Paths below `folder` are written relative to it."""
    changed = changed_paths(bundle)
    lines = [
        "# Configuration of sftctl. A line that begins with '# name' is a default: take the mark away to change it.",
        "# sftctl config explain NAME says more of a setting, sftctl config check FILE what is wrong.",
    ]
    modules = sorted({module for name in bundle.extensions if (module := registry.plugin_of(name)) is not None})
    if modules:
        lines += ["", _assign("plugins", modules, format)]
    for group in groups().values():
        if group.built_in or group.name in bundle.extensions:
            lines += ["", *_group(bundle, group, changed, format, folder)]
    return "\n".join(lines) + "\n"


def minimal(format: Format = "toml") -> str:
    """The few settings that one writes first."""
    lines = ["# The other settings keep their defaults: sftctl config show FILE shows all."]
    group = ""
    for path, value in MINIMAL.items():
        home, _, name = path.partition(".")
        if home != group:
            lines += ["", f"[{home}]" if format == "toml" else f"{home}:"]
            group = home
        leaf = next(leaf for leaf in groups()[home].leaves if leaf.name == name)
        indent = "" if format == "toml" else "  "
        lines += [f"{indent}# {leaf.help}", indent + _assign(name, value, format)]
    return "\n".join(lines) + "\n"


def from_recipe(name: str, format: Format = "toml", *, folder: str | None = None) -> str:
    """A shipped recipe as a commented file. Raises ConfigError for a name that there is none of."""
    return scaffold(resolve([recipes.PREFIX + name.removeprefix(recipes.PREFIX)]).bundle, format, folder=folder)


def write(path: str, text: str, *, force: bool = False) -> None:
    """Writes the file, aside and then renamed. Raises ConfigError where there is one and not `force`, or no folder."""
    if os.path.exists(path) and not force:
        raise ConfigError(Problem("", f"{path}: is there already", help="--force overwrites it"))
    aside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(Problem("", f"{path}: cannot be written: {reason}", help="name another place")) from None


def _group(bundle: Bundle, group: Group, changed: frozenset[str], format: Format, folder: str | None) -> Iterator[str]:
    is_said = any(leaf.path in changed for leaf in group.leaves) or (group.free and bool(bundle.env))
    indent = "" if format == "toml" else "  "
    yield from _comment(group.help, "")
    header = f"[{group.name}]" if format == "toml" else f"{group.name}:"
    yield header if is_said or format == "toml" else f"# {header}"
    if group.free:
        values = plain_value(dict(bundle.env), group.name)
        for name, value in values.items():
            yield indent + _assign(name, plain_value(value, f"{group.name}.{name}"), format)
        if not values:
            yield f"{indent}# {_assign('NAME', 'value', format)}"
        return
    for leaf in group.leaves:
        yield ""
        yield from _comment(_about(leaf), indent)
        value = _shortened(plain_value(value_of(bundle, leaf), leaf.path), leaf, folder)
        if leaf.path in changed:
            yield indent + _assign(leaf.name, value, format)
        else:
            default = plain_value(leaf.default, leaf.path)
            yield f"{indent}# {_assign(leaf.name, default, format)}"


def _about(leaf: Leaf) -> str:
    """Help, type, unit, bounds, choices, on as many lines as they need."""
    kind = leaf.type_text
    unit = f", in {leaf.unit}" if leaf.unit else ""
    limit = f" {leaf.limit}" if leaf.limit is not None and str(leaf.limit) != "a finite number" else ""
    words = f" ({', '.join(leaf.words)}, or a path)" if leaf.words else ""
    return f"{leaf.help} {kind[:1].upper()}{kind[1:]}{words}{limit}{unit}."


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.split()), 96 - len(indent)):
        yield f"{indent}# {line}"


def _assign(name: str, value: Any, format: Format) -> str:
    if format == "yaml":
        key = name if re.fullmatch(r"[A-Za-z_][\w-]*", name) else quoted(name)
        return f"{key}: {_flow(value)}"
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return f"{show_key(name)} = [{', '.join(show_value(each) for each in value)}]"
    return f"{show_key(name)} = {show_value('none' if value is None else _quoted_none(value))}"


def _quoted_none(value: Any) -> Any:
    """None inside a table or a list, as TOML has it: the text."""
    if isinstance(value, dict):
        return {key: _quoted_none(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_quoted_none(each) for each in value]
    return "none" if value is None else value


def _flow(value: Any) -> str:
    """A value in YAML's flow style: JSON, with numbers that every reader of YAML takes for numbers."""
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, list):
        return f"[{', '.join(_flow(each) for each in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{quoted(key)}: {_flow(each)}' for key, each in value.items())}}}"
    return (
        show_choice(value)
        if isinstance(value, bool)
        else quoted(value)
        if isinstance(value, str)
        else json.dumps(value)
    )


def _shortened(value: Any, leaf: Leaf, folder: str | None) -> Any:
    """Absolute paths below the file's folder as relative ones."""
    if folder is None:
        return value
    if leaf.is_entries:
        return [{**each, "path": _relative(each["path"], folder)} for each in value]
    return _relative(value, folder) if leaf.is_path and isinstance(value, str) else value


def _relative(path: str, folder: str) -> str:
    if path == folder:
        return "."
    inside = path.startswith(folder.rstrip(os.sep) + os.sep)
    return f"./{os.path.relpath(path, folder)}" if inside else path
