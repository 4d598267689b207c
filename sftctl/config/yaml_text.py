"""YAML as we write it: what our reader (YAML 1.2 core) and PyYAML's (1.1) read alike.

PyYAML writes 1e-05 for a number, which its own reader takes for text; quotes decide for both readers here.
"""

from __future__ import annotations

from typing import Any

import yaml


class Dumper(yaml.SafeDumper):
    """Lists of scalars on one line, floats with a point, and quotes around text that any YAML could misread."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _str(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    from sftctl.config.sources.yaml import reads_as_text

    style = None if reads_as_text(value) and value.isprintable() else '"'  # U+0085 is a line break of YAML's
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    flow = not any(isinstance(each, (dict, list)) for each in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flow)


Dumper.add_representer(float, _float)
Dumper.add_representer(str, _str)
Dumper.add_representer(list, _list)
