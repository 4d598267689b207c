"""Draw the pictures of docs/how-to/masks.md: `python docs/how-to/masks/make_pictures.py [FOLDER]`.

Each is what `sftctl` writes to a terminal for `talks.toml`, as rich exports it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sftctl.cli.app import main

HERE = Path(__file__).parent
WIDTH = 96
PICTURES = {
    "preview.svg": ["data", "preview", "talks.toml"],
    "packed.svg": ["data", "preview", "talks.toml", "--packing", "--packed", "--rows", "1"],
}


def screen(words: list[str]) -> str:
    """What the command writes to a terminal, with its colours."""
    with contextlib.chdir(HERE), contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(words) == 0
    return said.getvalue().replace(f"{HERE}{os.sep}", "")


def draw(folder: Path) -> None:
    """Write the pictures into `folder`."""
    os.environ["FORCE_COLOR"] = "1"
    for name, words in PICTURES.items():
        command = f"$ sftctl {' '.join(words)}"
        console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, legacy_windows=False)
        console.print(Text(command, style="bold"))
        console.print(Text.from_ansi(screen(words)))
        (folder / name).write_text(console.export_svg(title="sftctl", unique_id=name.removesuffix(".svg")) + "\n")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
