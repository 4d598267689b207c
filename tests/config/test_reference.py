"""The page of all settings is made from the schema."""

from __future__ import annotations

import os
from pathlib import Path

from sftctl.config import reference
from sftctl.config.leaves import leaves

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


def test_the_page_is_made_from_the_schema() -> None:
    """After a change of the schema: WRITE_REFERENCE=1 pytest tests/config/test_reference.py"""
    if os.environ.get("WRITE_REFERENCE"):
        PAGE.write_text(reference.page())
    assert PAGE.read_text() == reference.page()


def test_each_leaf_has_a_row() -> None:
    for leaf in leaves().values():
        assert f"| `{leaf.name}` | `{leaf.options[1]}` |" in reference.page()
