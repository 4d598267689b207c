"""Which leaves may differ between a run and the one that goes on from it."""

import attrs
from hypothesis import given
from hypothesis import strategies as st

from sftctl.config.schema import BUILT_IN_GROUPS
from sftctl.runs.identity import MAY_CHANGE, Difference, differences, flat, problems


def test_leaves_that_decide_what_is_trained_are_named():
    before = {"optim": {"learning_rate": 1e-3, "betas": (0.9, 0.99)}, "checkpoint": {"save_steps": 5}}
    now = {"optim": {"learning_rate": 1e-4, "betas": [0.9, 0.99]}, "checkpoint": {"save_steps": 7}}
    assert differences(before, now) == (Difference("optim.learning_rate", 1e-3, 1e-4),)
    assert differences(before, before) == ()


def test_a_leaf_on_one_side_only_differs():
    assert differences({"sft": {"packing": True}}, {"x": {"y": 1}}) == (
        Difference("x.y", None, 1),
        Difference("sft.packing", True, None),
    )


def test_a_table_inside_a_leaf_is_named_by_its_key():
    before = {"model": {"architecture": {"hidden_size": 64, "num_hidden_layers": 2}}}
    now = {"model": {"architecture": {"hidden_size": 128, "num_hidden_layers": 2}}}
    assert [item.path for item in differences(before, now)] == ["model.architecture.hidden_size"]


def test_flat_leaves_and_nested_groups_are_the_same():
    nested = {"optim": {"betas": (0.9, 0.99)}, "model": {"architecture": {"hidden_size": 64}}}
    assert differences(flat(nested), nested) == ()


@given(st.sampled_from(["optim.learning_rate", "run.seed", "sft.packing", "train.max_steps", "data.shuffle"]))
def test_what_decides_the_numbers_may_never_change(path):
    group, name = path.split(".")
    assert differences({group: {name: 1}}, {group: {name: 2}})


def test_every_pattern_matches_a_leaf_of_the_schema():
    """A leaf that was renamed must not stay allowed, or forbidden, under its old name."""
    leaves = [f"{group}.{field.name}" for group, kind in BUILT_IN_GROUPS.items() for field in attrs.fields(kind)]
    for pattern in set(MAY_CHANGE) - {"env.*"}:
        changed = [leaf for leaf in leaves if not differences(flat({leaf: 1}), flat({leaf: 2}), may_change=[pattern])]
        assert changed, pattern


def test_the_problem_names_both_values_and_the_place():
    (problem,) = problems([Difference("run.seed", 1, 2)], where="runs/a")
    assert (problem.path, problem.message) == ("run.seed", "is 2 now and was 1 in runs/a")
    assert "another run" in problem.help


def test_a_secret_may_be_there_or_not():
    """The saved configuration of a run does not hold it, and the run goes on from that."""
    with_one = {"model": {"model_init_kwargs": {"token": "***", "use_safetensors": True}}}
    without = {"model": {"model_init_kwargs": {"use_safetensors": True}}}
    assert differences(with_one, without) == differences(without, with_one) == ()
