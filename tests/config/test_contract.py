"""What other rooms rely on: the table of leaves, the lists that name leaves, and what importing costs."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import attrs
import pytest

from sftctl.config import scaffold, suggest
from sftctl.config.leaves import by_flat, find, groups, leaves
from sftctl.config.resolve import resolve
from sftctl.config.schema import BUILT_IN_GROUPS, Bundle


def test_no_two_leaves_share_a_flat_name() -> None:
    assert len(by_flat()) == len(leaves())
    spellings = [spelling for leaf in leaves().values() for spelling in leaf.options]
    assert len(set(spellings)) == 2 * len(leaves())


def test_every_leaf_has_a_help_that_ends_as_a_sentence() -> None:
    for leaf in leaves().values():
        assert leaf.help.endswith("."), leaf.path
        assert len(leaf.help) <= 110, leaf.path


def test_the_table_follows_the_schema() -> None:
    assert list(groups()) == [*BUILT_IN_GROUPS, "env"]
    for name, cls in BUILT_IN_GROUPS.items():
        assert [leaf.name for leaf in groups()[name].leaves] == [field.name for field in attrs.fields(cls)]


def test_every_default_is_a_value_of_its_leaf() -> None:
    for leaf in leaves().values():
        group = getattr(Bundle(), leaf.group)
        assert getattr(group, leaf.name) == leaf.default
        if leaf.choices and not leaf.is_tuple:
            assert leaf.default in leaf.choices or leaf.optional


def test_entries_are_found_by_their_path() -> None:
    leaf = find("data.datasets[3].columns")
    assert leaf is not None
    assert leaf.value_type is str
    assert find("data.datasets[3].nothing") is None
    assert find("optim.learning_rate[0].x") is None


def test_lists_that_name_leaves_name_leaves() -> None:
    assert all(find(path) for path in scaffold.MINIMAL)
    assert all(find(path) or path == "env" for path in suggest.SHORT_WORDS.values())


def test_defaults_resolve_with_every_leaf_a_node() -> None:
    resolved = resolve()
    assert list(resolved.nodes) == list(leaves())
    assert all(str(node.origin) == "default" and node.shadowed == () for node in resolved.nodes.values())
    assert resolved.notes == ()


HEAVY = ("torch", "transformers", "datasets", "numpy", "pydantic", "rich", "yaml", "tomli_w", "importlib.metadata")


@pytest.mark.parametrize(
    "code",
    [
        "import sftctl",
        "import sftctl; sftctl.load('run.toml', overrides={'optim.learning_rate': 1e-4})",
        "import sftctl; sftctl.evolve(sftctl.Bundle(), {'sft.packing': True})",
        "from sftctl.config.resolve import resolve; resolve(['run.toml'], env={'SFTCTL_RUN__SEED': '1'})",
    ],
)
def test_nothing_heavy_is_imported(code: str, tmp_path: object) -> None:
    script = textwrap.dedent(f"""
        import os, sys
        os.chdir({str(tmp_path)!r})
        open("run.toml", "w").write("[run]\\nseed = 1")
        {code}
        print(*[name for name in {HEAVY!r} if name in sys.modules])
    """)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
