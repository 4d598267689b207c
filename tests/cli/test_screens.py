"""What a run says, on a terminal and in a log file, from the same events."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from sftctl.cli import figures
from sftctl.cli.lines import Lines
from sftctl.cli.render import Screen
from sftctl.engine.data.proof import Example, MaskProof, Piece, RoleCount, SourceProof
from sftctl.errors import Problem
from sftctl.records import Answer, EvalReport, RunResult, StepReport

ANSWERS = (
    Answer("to ISO 8601: the 4th of May 1999", "1999-05-04", "1999-05-04", stopped=True),
    Answer("to ISO 8601: 4/5/01", "2001-05-04\x1b[2J", "2001-04-05", stopped=True),
)
PROOF = MaskProof(
    sources=(
        SourceProof(
            source="/somewhere/rows.jsonl",
            where="data.datasets[0]",
            format="prompt_completion",
            rows=4000,
            rows_used=4000,
            tokens=312000,
            trained_tokens=80000,
            roles=(RoleCount("prompt", 232000, 0), RoleCount("completion", 80000, 80000)),
            rows_dropped={"nothing_to_train": 3},
            rows_truncated=2,
            rows_nothing_to_train=3,
            trained_tokens_cut=40,
            straddling_tokens=0,
            stop_tokens=("<|end|>",),
            rows_stop_trained=3990,
            examples=(Example(1, (Piece("a question\x1b]0;title\x07\n", False), Piece("an answer<|end|>", True))),),
            notes=("the column 'id' is not used",),
        ),
    ),
    violations=(Problem("data.datasets[0]", "nothing of it trains", help="look at rows"),),
)


def step(number: int) -> StepReport:
    return StepReport(number, number / 10, 5.5 / number, 1e-3, 1.0, 0.5, 0.1, 1000, 500, 21034.2, 0.1, 0)


def tell(reporter: Screen | Lines, folder: Path) -> None:
    """A whole run of twenty steps."""
    (folder / "final").mkdir()
    with reporter:
        reporter.stage("read the data")
        reporter.proof(PROOF)
        reporter.stage("load the model")
        reporter.note("the attention isolates documents")
        reporter.started(path=folder, step=0, total_steps=20)
        reporter.evaluated(EvalReport(0, 0.0, {"eval_loss": 5.5, "eval_exact_match": 0.0}))
        for number in range(1, 21):
            reporter.step(step(number))
        reporter.saved(folder / "checkpoints" / "step-20")
        reporter.evaluated(EvalReport(20, 2.0, {"eval_loss": 0.02, "eval_exact_match": 0.9625}, ANSWERS))
        reporter.finished(RunResult(folder, {}, 0.02, 20, ANSWERS))


FACTS = (
    "4,000",
    "312,000",
    "25.6%",
    "in 3,990 of 4,000 rows",
    "left out: 3 rows, nothing to train",
    "cut to max_length: 2 rows, 40 trained tokens",
    "the column 'id' is not used",
    "nothing of it trains; look at rows",
    "the attention isolates documents",
    "5.5000",
    "0.9625",
    "1 of 2 answered exactly",
    "1999-05-04",
    "2001-04-05",
    "2001-05-04␛[2J",  # what a row or a model says cannot clear the screen
    "a question␛]0;title␇⏎",
    "AutoModelForCausalLM.from_pretrained(",
    "config.toml --changed",
    "step-20",
)


def test_a_log_file_holds_every_fact_and_no_control_character(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(Lines(logging_steps=10), tmp_path)
    said = capsys.readouterr().out
    for fact in FACTS:
        assert fact in said
    assert all(character.isprintable() or character == "\n" for character in said)
    steps = [line for line in said.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/20", "10/20", "20/20"]
    assert steps[1].startswith("step 10/20  epoch 1.00  loss 0.5500  lr 0.001  21,034 tokens/s  left ")
    assert "<<an answer<|end|>>>" in said


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_shows_every_fact_within_its_width(tmp_path: Path, width: int) -> None:
    file = io.StringIO()
    tell(Screen(Console(file=file, force_terminal=True, width=width, highlight=False)), tmp_path)
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    flat = " ".join(said.split())
    for fact in FACTS:
        assert fact in flat
    for line in re.split(r"[\r\n]", said):
        assert len(line.rstrip()) <= width or str(tmp_path) in line  # what is to be copied is never broken


def test_the_bar_shows_loss_speed_and_time_left() -> None:
    file = io.StringIO()
    screen = Screen(Console(file=file, force_terminal=True, width=100, highlight=False))
    with screen:
        screen.started(path=Path("runs/x"), step=0, total_steps=20)
        screen.step(step(10))
        screen._refresh()
    assert "10/20 loss 0.5500  21,034 tokens/s  0 s left" in file.getvalue()


def test_a_stage_that_fails_is_marked() -> None:
    file = io.StringIO()
    screen = Screen(Console(file=file, force_terminal=True, width=80, no_color=True))
    screen.__enter__()
    screen.stage("load the model")
    screen.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert "✗ load the model" in file.getvalue()


def test_rich_markup_in_the_data_is_text() -> None:
    file = io.StringIO()
    screen = Screen(Console(file=file, force_terminal=True, width=80, no_color=True))
    with screen:
        screen.note("a [bold]tag[/bold] and [/]")
    assert "a [bold]tag[/bold] and [/]" in file.getvalue()


def test_figures() -> None:
    assert [figures.duration(each) for each in (7.6, 65, 7384)] == ["8 s", "1:05", "2:03:04"]
    assert [figures.metric("eval_loss", each) for each in (0.95, 1.25e-5, 0.0, 2.0)] == [
        "0.9500",
        "1.25e-05",
        "0.0000",
        "2.0000",
    ]
    assert figures.metric("eval_num_trained_tokens", 4400.0) == "4,400"
    report = EvalReport(8, 1.0, {"eval_loss": 0.5, "eval_num_trained_tokens": 4400.0})
    assert figures.evaluation_line(report) == "evaluation at step 8: loss 0.5000"
    assert figures.one_line("a  b\nc", 10) == "a b c"
    assert figures.one_line("abcdefghijklmnop", 10) == "abc … mnop"
    assert figures.share(1, 0) == "-"


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ([7], [0, 1, 2, 3, 4, 7]),
        ([5, 6, 7, 8], [0, 1, 2, 3, 5, 6]),
        ([], [0, 1, 2, 3, 4, 5]),
        ([0, 1, 2, 3, 4, 5, 6, 7, 9], [0, 1, 2, 3, 4, 8]),
        (list(range(10)), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_sample_of_answers_shows_both_kinds(wrong: list[int], shown: list[int]) -> None:
    answers = [Answer(str(number), "x", "y" if number in wrong else "x", stopped=True) for number in range(10)]
    assert [int(answer.prompt) for answer in figures.sample(answers, 6)] == shown
    assert figures.sample([], 6) == []
