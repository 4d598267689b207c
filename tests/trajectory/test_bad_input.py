"""What a user can get wrong on the way to a run: one clear message, exit code 2, nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sftctl.cli.app import main

Row = dict[str, object]
GOOD: Row = {"prompt": "2 + 2 = ", "completion": "4"}


@pytest.fixture
def attempt(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """`sftctl train` with options, refused: gives the report, having looked that nothing was left behind."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str, code: int = 2) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main(["train", str(config), *options]) == code
        report = capsys.readouterr().err
        assert report.startswith("error: ")
        assert "Traceback" not in report
        assert sorted(tmp_path.rglob("*")) == before
        return report

    return run


def rows_file(folder: Path, *lines: Row | str, name: str = "rows.jsonl") -> str:
    path = folder / name
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return f'data.datasets=[{{path="{path}"}}]'


def test_a_missing_configuration_file(attempt: Callable[..., str]) -> None:
    assert "nowhere.toml" in attempt("nowhere.toml")


def test_a_missing_data_file(attempt: Callable[..., str]) -> None:
    report = attempt("--set", 'data.datasets=[{path="absent.jsonl"}]')
    assert "data.datasets[0]" in report
    assert "absent.jsonl" in report


def test_a_row_that_is_not_json(attempt: Callable[..., str], tmp_path: Path) -> None:
    report = attempt("--set", rows_file(tmp_path, GOOD, '{"prompt": "3 + 3'))
    assert "rows.jsonl:2" in report
    assert "skip" in report


def test_a_bad_row_can_be_left_out(config: Path, tmp_path: Path) -> None:
    """And is in the ledger, with its line and reason."""
    rows = rows_file(tmp_path, GOOD, "{", GOOD)
    words = ["--set", rows, "--on-bad-row=skip", "--max-steps=1", f"--output-dir={tmp_path}", "--run-name=a"]
    assert main(["train", str(config), *words]) == 0
    (dropped,) = [json.loads(line) for line in (tmp_path / "a" / "dropped.jsonl").read_text().splitlines()]
    assert (dropped["line"], dropped["kind"], dropped["split"]) == (2, "bad_row", "train")
    (source,) = json.loads((tmp_path / "a" / "data.json").read_text())["train"]["sources"]
    assert (source["rows_read"], source["rows_kept"]) == (3, 2)


def test_a_column_that_is_not_there(attempt: Callable[..., str], tmp_path: Path) -> None:
    report = attempt("--set", rows_file(tmp_path, {"question": "2 + 2", "answer": "4"}))
    assert "question" in report
    assert "answer" in report


def test_an_empty_source(attempt: Callable[..., str], tmp_path: Path) -> None:
    assert "empty" in attempt("--set", rows_file(tmp_path))


def test_a_source_with_nothing_to_train(attempt: Callable[..., str], tmp_path: Path) -> None:
    report = attempt("--set", rows_file(tmp_path, {"prompt": "2 + 2 = " * 30, "completion": "4"}))
    assert "max_length" in report


def talk(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


STOPLESS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
ONE = '{path="0.jsonl"}'
PROBLEMS: dict[str, tuple[list[list[Row]], str, list[str], tuple[str, str]]] = {
    "a template that ends answers with no token": (
        [[talk("a", "b")]],
        ONE,
        ["--chat-template-path", "template.jinja"],
        (
            "data.datasets[0]: none of the stop tokens (<|im_end|>) trains in any of the 1 rows",
            "set model.eos_token, or a chat template that ends each answer with it",
        ),
    ),
    "every row is cut before its end": (
        [[talk("a", "b" * 90), talk("a", "c" * 90)]],
        ONE,
        ["--assistant-only-loss", "--max-length", "90"],
        (
            "data.datasets[0]: none of the stop tokens (<|im_end|>) trains in any of the 2 rows",
            "the rows are cut before they end: raise sft.max_length",
        ),
    ),
    "most of the targets are cut": (
        [[talk("a", "b" * 90), talk("a", "b")]],
        ONE,
        ["--assistant-only-loss", "--max-length", "50"],
        (
            "data.datasets[0]: truncation cuts 66% of the targets, 61 tokens",
            'raise sft.max_length, or drop long rows with sft.truncation_mode = "drop"',
        ),
    ),
    "every row is cut before its end, and all of it trains": (
        [[talk("x", "y" * 90)] * 4],
        ONE,
        ["--max-length", "90"],
        (
            "data.datasets[0]: none of the stop tokens (<|im_end|>) trains in any of the 4 rows",
            "the rows are cut before they end: raise sft.max_length",
        ),
    ),
    "packing cuts the only target off": (
        [[{"prompt": "abcdefgh", "completion": ""}] * 8],
        ONE,
        ["--packing", "--packing-strategy", "bfd_split", "--max-length", "8"],
        (
            "data.datasets[0]: nothing of this source trains: packing cuts its rows so that every target begins a",
            'packing cuts them off: raise sft.max_length, or set sft.packing_strategy = "bfd"',
        ),
    ),
    "packing cuts the stop token off": (
        [[{"text": "abcdefgh"}] * 8],
        ONE,
        ["--packing", "--packing-strategy", "bfd_split", "--max-length", "8"],
        (
            "data.datasets[0]: none of the stop tokens (<|im_end|>) trains in the rows as they are used, though in 8 "
            "as they are read",
            'packing cuts them off: raise sft.max_length, or set sft.packing_strategy = "bfd"',
        ),
    ),
    "a share of no row": (
        [[talk("a", "b")] * 4, [talk("c", "d")] * 4],
        '{path="0.jsonl", fraction=1}, {path="1.jsonl", fraction=0.01}',
        [],
        (
            "data.datasets[1]: nothing of this source trains: the mixture takes none of its 4 rows",
            "raise its fraction or weight, or leave the source out",
        ),
    ),
    "a weight that is never drawn": (
        [[talk("a", "b")] * 4, [talk("c", "d")] * 4],
        '{path="0.jsonl"}, {path="1.jsonl", weight=1e-9}',
        ["--mixing", "interleave"],
        (
            "data.datasets[1]: nothing of this source trains: the mixture takes none of its 4 rows",
            "raise its fraction or weight, or leave the source out",
        ),
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_each_problem_of_the_masks(
    attempt: Callable[..., str], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """It stops a run before the weights load; `data stats` shows it; `on_mask_problem = "warn"` only says it."""
    rows, sources, more, (problem, hint) = PROBLEMS[case]
    (tmp_path / "template.jinja").write_text(STOPLESS)
    for number, each in enumerate(rows):
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    words = ["--set", f"data.datasets=[{sources}]", *more]
    report = " ".join(attempt(*words).split())
    assert problem in report
    assert hint in report
    assert main(["data", "stats", str(config), *words]) == 0
    assert f"mask problem: {problem}" in capsys.readouterr().out
    lenient = ["--on-mask-problem=warn", "--max-steps=1", f"--output-dir={tmp_path}", "--run-name=a"]
    assert main(["train", str(config), *words, *lenient]) == 0
    assert f"mask problem: {problem}" in capsys.readouterr().out


def test_assistant_only_loss_on_rows_without_a_conversation(attempt: Callable[..., str]) -> None:
    assert "assistant_only_loss" in attempt("--assistant-only-loss")


def test_completion_only_loss_on_plain_text(attempt: Callable[..., str], tmp_path: Path) -> None:
    rows = rows_file(tmp_path, {"text": "just text"})
    assert "completion_only_loss" in attempt("--set", rows, "--completion-only-loss")


def test_mixed_formats(attempt: Callable[..., str], tmp_path: Path) -> None:
    report = attempt("--set", rows_file(tmp_path, GOOD, {"text": "just text"}))
    assert "rows.jsonl:2" in report


def test_a_model_folder_that_is_not_there(attempt: Callable[..., str]) -> None:
    assert "./absent" in attempt("--init=pretrained", "--set", "~model.architecture", "--model-name-or-path=./absent")


def test_a_model_folder_without_weights(attempt: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    report = attempt("--init=pretrained", "--set", "~model.architecture", f"--model-name-or-path={folder}")
    assert "weights" in report
    assert "safetensors" in report


def test_a_model_folder_without_a_config(attempt: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    report = attempt("--init=pretrained", "--set", "~model.architecture", f"--model-name-or-path={tmp_path / 'model'}")
    assert "config.json" in report


def test_an_unknown_field_of_the_architecture(attempt: Callable[..., str]) -> None:
    report = attempt("--set", 'model.architecture={model_type="llama", hiden_size=32}')
    assert "hiden_size" in report
    assert "hidden_size" in report


def test_an_unknown_model_type(attempt: Callable[..., str]) -> None:
    assert "llamma" in attempt("--set", 'model.architecture={model_type="llamma"}')


def test_an_output_folder_that_is_a_file(attempt: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    report = attempt(f"--output-dir={tmp_path / 'taken'}")
    assert "taken" in report
    assert (tmp_path / "taken").read_text() == "mine"


def test_an_output_folder_where_nothing_can_be_written(attempt: Callable[..., str]) -> None:
    assert "/proc/nowhere" in attempt("--output-dir=/proc/nowhere")


def test_a_run_directory_of_another_run(
    train: Callable[..., Path], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("--max-steps=1")
    kept = (run / "metrics.jsonl").read_bytes()
    words = [f"--output-dir={tmp_path}", "--run-name=run", "--max-steps=1", "--learning-rate=1e-4"]
    assert main(["train", str(config), *words]) == 2
    assert "optim.learning_rate" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == kept


def test_a_loss_that_is_not_finite_stops_the_run(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--output-dir={tmp_path}", "--run-name=a", "--learning-rate=1e30", "--set", "optim.max_grad_norm='none'"]
    assert main(["train", str(config), *words]) == 1
    report = capsys.readouterr().err
    assert "learning_rate" in report
    assert json.loads((tmp_path / "a" / "state.json").read_text())["phase"] == "failed"


def test_what_a_stream_cannot_have(attempt: Callable[..., str], tmp_path: Path) -> None:
    report = attempt("--streaming", "--set", "~train.max_steps", "--test-split-size=0.5")
    assert "a stream has no known end, and train.max_steps is not set" in report
    assert "a share of a stream cannot be held out" in report
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    report = attempt("--streaming", "--set", f'data.datasets=[{{path="{path}", fraction=0.5}}]')
    assert "shares follow from the number of rows" in report
    report = attempt("--streaming", "--set", f'data.datasets=[{{path="{path}", split="train[:1]"}}]')
    assert "train[:1] is a slice" in report


def test_a_streamed_run_keeps_its_books(config: Path, tmp_path: Path) -> None:
    """What fell out up to the end of the last window, and what of the rows to evaluate on did."""
    rows = rows_file(tmp_path, GOOD, "{", *[GOOD] * 3)
    held_out = rows_file(tmp_path, GOOD, "[]", name="eval.jsonl").replace("datasets", "eval_datasets")
    words = ["--streaming", "--per-device-train-batch-size=4", "--max-steps=3", "--on-bad-row=skip", "--eval-steps=2"]
    words += ["--set", rows, "--set", held_out, f"--output-dir={tmp_path}", "--run-name=a"]
    assert main(["train", str(config), *words]) == 0
    dropped = [json.loads(line) for line in (tmp_path / "a" / "dropped.jsonl").read_text().splitlines()]
    assert [(row["split"], row["line"]) for row in dropped] == [("train", 2)] * 3 + [("evaluation", 2)]
    ledger = json.loads((tmp_path / "a" / "data.json").read_text())
    assert ledger["train"]["sources"][0]["rows_read"] == 15
    assert ledger["train"]["window"] == {"number": 2, "first_step": 2, "end_step": 3}
    metrics = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval_loss" in record for record in metrics) == 2


def test_a_dry_run_checks_and_leaves_nothing(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config), f"--output-dir={tmp_path / 'runs'}", "--dry-run"]) == 0
    assert "20 steps" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_state_space_model_cannot_be_packed(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody wrote "mamba" on a list: its logits move when the document before changes."""
    mamba = tmp_path / "mamba.toml"
    text = config.read_text(encoding="utf-8")
    start, end = text.index("[model.architecture]"), text.index("[[data.datasets]]")
    sizes = '[model.architecture]\nmodel_type = "mamba"\nhidden_size = 32\nnum_hidden_layers = 2\nstate_size = 4\n\n'
    mamba.write_text(text[:start] + sizes + text[end:], encoding="utf-8")
    words = ["train", str(mamba), f"--output-dir={tmp_path}", "--max-steps=2"]
    assert main([*words, "--packing", "--run-name=packed"]) == 2
    assert "error: sft.packing: documents that share a row of this model see each other" in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()
    assert main([*words, "--run-name=padded"]) == 0
