"""The pictures of docs/how-to/masks.md are what the command writes now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "how-to" / "masks"


def test_the_pictures_of_the_mask_page_are_current(tmp_path: Path) -> None:
    """To draw them anew: python docs/how-to/masks/make_pictures.py"""
    subprocess.run([sys.executable, str(FOLDER / "make_pictures.py"), str(tmp_path)], check=True)
    drawn = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.svg")}
    assert len(drawn) == 2
    assert drawn == {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.svg")}
