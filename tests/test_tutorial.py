"""The tutorial does what it shows: its files are written, its commands run, and what it prints is what they print.

Slow, since it trains two models; nothing else keeps the page true.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tutorial" / "a-shop.md"
FILES = {"python": iter(["make_rows.py", "ask.py"]), "toml": iter(["shop.toml", "shop.toml"])}


def blocks() -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


def runs(text: str) -> list[tuple[str, str]]:
    """Each `$ command` of a console block, with the lines it is to print."""
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in re.split(r"^\$ ", text, flags=re.M)[1:]]


def pattern(shown: str) -> str:
    """Lines left out, and parts of a line, are `…`."""
    lines = (re.escape(line).replace("…", ".*") + "\n" for line in shown.splitlines())
    return "".join("(?:.*\n)*?" if line == ".*\n" else line for line in lines)


@pytest.mark.slow
def test_every_command_of_the_tutorial_prints_what_the_page_shows(tmp_path: Path) -> None:
    for kind, text in blocks():
        if kind in FILES:
            (tmp_path / next(FILES[kind])).write_text(text)
            continue
        for command, shown in runs(text):
            words = command.split()
            program = [sys.executable, "-m", "sftctl"] if words[0] == "sftctl" else [sys.executable]
            environment = {**os.environ, "COLUMNS": "120", "SFTCTL_DATA__CACHE_DIR": str(tmp_path / "cache")}
            done = subprocess.run(
                [*program, *words[1:]], cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=300
            )
            refused = "\nerror: " in shown
            said = done.stdout + (done.stderr if refused else "")
            expected = 2 if refused else 1 if words[1:3] == ["config", "diff"] else 0
            assert done.returncode == expected, f"{command}\n{done.stdout}{done.stderr}"
            assert re.fullmatch(pattern(shown), said), f"{command}\n{said}"
