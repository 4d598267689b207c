"""What the documentation names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tests_and_scripts_that_a_page_names_exist(page: Path) -> None:
    """`tests/runs/test_files.py`, `tests/runs/test_files.py::test_this_or_that`, `benchmarks/kills.py`."""
    for path, _, test in re.findall(r"`(?:python )?((?:tests|benchmarks)/[\w./-]+)(::(\w+))?", page.read_text()):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), f"{page.name} names {path}::{test}"


def test_each_threat_names_a_test() -> None:
    text = (ROOT / "docs" / "reference" / "threats.md").read_text().partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 12
    for row in rows:
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", row), row


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in PAGES:
        if page.parent.name in {"tutorial", "how-to", "reference"}:
            assert f"({page.parent.name}/{page.name})" in index
