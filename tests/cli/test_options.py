"""Reading a command line: words, assignments, switches, and every mistake as a problem."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.cli.options import Invocation, parse
from sftctl.cli.switches import Switch, Usage, Words
from sftctl.config.leaves import leaves
from sftctl.config.sources.options import Assignment

USAGE = Usage(
    summary="",
    words=Words("FILE", "Files."),
    switches=(
        Switch("dry-run", "Stop early."),
        Switch("format", "How.", choices=("table", "json")),
        Switch("output", "Where.", value="PATH", short="o"),
        Switch("over", "What.", value="KEY=VALUES", many=True),
    ),
    takes_leaves=True,
)


def read(*arguments: str) -> Invocation:
    return parse(arguments, USAGE, command="sftctl train")


def said(*arguments: str) -> list[tuple[str, str, str | None]]:
    return [(problem.path, problem.message, problem.help) for problem in read(*arguments).problems]


def assigned(*arguments: str) -> list[tuple[str | None, str | None]]:
    invocation = read(*arguments)
    assert not invocation.problems
    return [(each.path, each.text) for each in invocation.assignments]


@pytest.mark.parametrize(
    "spelling", ["--optim.learning-rate", "--optim.learning_rate", "--learning-rate", "--learning_rate"]
)
@pytest.mark.parametrize("form", ["apart", "joined"])
def test_every_spelling_means_the_leaf(spelling: str, form: str) -> None:
    arguments = [spelling, "1e-4"] if form == "apart" else [f"{spelling}=1e-4"]
    assert read(*arguments).assignments == (Assignment(spelling, "option", "optim.learning_rate", "1e-4"),)


@pytest.mark.parametrize("path", list(leaves()))
def test_both_options_of_every_leaf_are_read(path: str) -> None:
    for option in leaves()[path].options:
        assert assigned(f"{option}=x") == [(path, "x")]


def test_options_stand_before_between_and_after_words() -> None:
    invocation = read("--dry-run", "a.toml", "--seed", "1", "b.toml", "--packing")
    assert invocation.words == ("a.toml", "b.toml")
    assert invocation.on("dry-run")
    assert [each.path for each in invocation.assignments] == ["run.seed", "sft.packing"]


def test_flags() -> None:
    packing = "sft.packing"
    assert assigned("--packing") == [(packing, "true")]
    assert assigned("--no-packing") == [(packing, "false")]
    assert assigned("--no-sft.packing") == [(packing, "false")]
    assert assigned("--sft.no_packing") == [(packing, "false")]
    assert assigned("--packing=false") == [(packing, "false")]
    assert assigned("--packing", "false") == [(packing, "false")]
    assert assigned("--packing", "maybe") == [(packing, "maybe")]  # an error, but about `maybe`
    assert assigned("--completion-only-loss=none") == [("sft.completion_only_loss", "none")]
    assert assigned("--gradient-checkpointing") == [("train.gradient_checkpointing", "true")]
    assert assigned("--gradient-checkpointing", "selective") == [("train.gradient_checkpointing", "selective")]
    assert assigned("--no-gradient-checkpointing") == [("train.gradient_checkpointing", "false")]


def test_a_flag_leaves_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").touch()
    for word in ("a.toml", "recipe:quickstart", "./x", "run"):
        assert read("--packing", word).words == (word,)


def test_values_may_be_negative_and_may_be_a_dash() -> None:
    assert assigned("--weight-decay", "-1") == [("optim.weight_decay", "-1")]
    assert assigned("--weight-decay", "-.5e-3") == [("optim.weight_decay", "-.5e-3")]
    assert assigned("--run-name=--x") == [("run.run_name", "--x")]
    assert assigned("--run-name", "-") == [("run.run_name", "-")]
    assert assigned("--run-name=") == [("run.run_name", "")]


def test_tuples_by_repetition() -> None:
    assert assigned("--betas", "0.9", "--betas", "0.95") == [("optim.betas", "0.9"), ("optim.betas", "0.95")]


def test_set_recipe_and_dataset() -> None:
    invocation = read("--set", "optim.betas=[0.9, 0.95]", "--set=~run.seed", "--dataset", "x.jsonl", "--recipe", "q")
    assert invocation.assignments == (
        Assignment("--set", "set", None, "optim.betas=[0.9, 0.95]"),
        Assignment("--set", "set", None, "~run.seed"),
        Assignment("--dataset", "option", "data.datasets", "x.jsonl"),
    )
    assert invocation.words == ("recipe:q",)
    assert assigned("--eval_dataset=y.jsonl") == [("data.eval_datasets", "y.jsonl")]


def test_switches() -> None:
    invocation = read("--format", "json", "-o", "out", "--over", "a=1", "--over=b=2")
    assert invocation.text("format") == "json"
    assert invocation.text("output") == "out"
    assert invocation.texts("over") == ("a=1", "b=2")
    assert not invocation.on("dry-run")
    assert read("-oout").text("output") == "out"


def test_after_two_dashes_everything_is_a_word() -> None:
    assert read("--", "--packing", "-x").words == ("--packing", "-x")


def test_a_command_may_ask_about_an_option() -> None:
    usage = Usage("", words=Words("KEY", "a key", most=1, may_be_options=True))
    assert parse(["--learning-rate"], usage, command="sftctl config explain").words == ("--learning-rate",)


ABBREVIATED = "options are not abbreviated: did you mean"
LISTED = "'sftctl train --help' lists the options"
MISTAKES = [
    ("--lerning-rate 1", "--lerning-rate", "unknown option", "did you mean '--learning-rate'?"),
    ("--learning_rat=1", "--learning_rat", "unknown option", f"{ABBREVIATED} '--learning-rate'?"),
    ("--optim.learning", "--optim.learning", "unknown option", f"{ABBREVIATED} '--optim.learning-rate'?"),
    ("--xyzzy", "--xyzzy", "unknown option", LISTED),
    ("-x", "-x", "unknown option", LISTED),
    ("--seed", "--seed", "needs a value", "write '--seed INT'"),
    ("--seed --packing", "--seed", "needs a value", "write '--seed=--packing' if that is the value"),
    ("--no-packing=true", "--no-packing", "takes no value, got 'true'", "write '--packing=true'"),
    ("--dry-run=1", "--dry-run", "takes no value, got '1'", "write only '--dry-run'"),
    ("--format xml", "--format", "'xml' is none of its choices", "choose from table, json"),
    ("--format json --format json", "--format", "given twice", "give it once"),
    ("--no-learning-rate", "--no-learning-rate", "unknown option", "'optim.learning_rate' is not on or off"),
    (
        "--no-max-grad-norm",
        "--no-max-grad-norm",
        "unknown option",
        "'optim.max_grad_norm' is not on or off: write '--max-grad-norm=none'",
    ),
    ("--dry-rum", "--dry-rum", "unknown option", "did you mean '--dry-run'?"),
]


@pytest.mark.parametrize(("line", "path", "message", "help"), MISTAKES)
def test_mistakes(line: str, path: str, message: str, help: str) -> None:
    assert said(*line.split()) == [(path, message, help)]


def test_the_number_of_words_is_checked() -> None:
    two = Usage(summary="", words=Words("A B", "Two things.", least=2, most=2))
    assert parse(["a", "b"], two, command="sftctl config diff").problems == ()
    one = parse(["a"], two, command="sftctl config diff").problems
    assert [(each.path, each.message) for each in one] == [("", "`sftctl config diff` needs A B: Two things.")]
    three = parse(["a", "b", "c"], two, command="sftctl config diff").problems
    assert [(each.path, each.message) for each in three] == [("c", "`sftctl config diff` takes no further word")]


def test_a_command_without_leaves_knows_none() -> None:
    plain = Usage(summary="", words=Words("FILE", ""))
    problems = parse(["--learning-rate", "1", "--set", "a=1"], plain, command="sftctl config check").problems
    assert [each.path for each in problems] == ["--learning-rate", "--set"]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12), max_size=8))
def test_whatever_is_typed_is_read(arguments: list[str]) -> None:
    """Reading never raises, and loses nothing: each argument is a word, an option's part, or in a problem."""
    invocation = read(*arguments)
    if not any(argument.startswith("-") for argument in arguments):
        assert invocation.words == tuple(arguments)


TOKENS = "--seed --packing --no-packing --set --tags=a --dry-run --format -o a 1 -1 -- --x"
KNOWN = st.sampled_from(TOKENS.split())


@given(st.lists(KNOWN, max_size=10))
def test_any_order_of_known_options_is_read(arguments: list[str]) -> None:
    """Every token is accounted for: none is lost without a trace."""
    invocation = read(*arguments)
    traces = len(invocation.words) + len(invocation.assignments) + len(invocation.problems) + len(invocation.switches)
    assert traces > 0 or not [each for each in arguments if each != "--"]
