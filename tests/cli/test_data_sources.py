"""Every kind of source, and what can be wrong with one, through the command line."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from sftctl.cli.app import main

ROWS = [{"user": f"What is {n} + {n}?", "assistant": f"{2 * n}\nor so, «{n}»"} for n in range(7)]

Made = Callable[[Path], str]


def _text(name: str, content: Callable[[], str]) -> Made:
    def make(folder: Path) -> str:
        (folder / name).write_text(content(), encoding="utf-8")
        return name

    return make


def _lines() -> str:
    return "".join(json.dumps(row) + "\n" for row in ROWS)


def _csv(folder: Path) -> str:
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["user", "assistant"])
        writer.writeheader()
        writer.writerows(ROWS)
    return "rows.csv"


def _gz(folder: Path) -> str:
    with gzip.open(folder / "rows.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(_lines())
    return "rows.jsonl.gz"


def _parquet(folder: Path) -> str:
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    return "rows.parquet"


def _arrow(folder: Path) -> str:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return "rows.arrow"


def _saved(folder: Path) -> str:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(folder / "saved"))
    return "./saved"


def _parts(folder: Path) -> str:
    (folder / "parts").mkdir()
    for number, rows in enumerate((ROWS[:3], ROWS[3:])):
        (folder / "parts" / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "parts/*.jsonl"


KINDS: dict[str, Made] = {
    "json": _text("rows.json", lambda: json.dumps(ROWS, indent=2)),
    "json lines": _text("rows.jsonl", _lines),
    "gzip": _gz,
    "csv": _csv,
    "parquet": _parquet,
    "arrow": _arrow,
    "save_to_disk": _saved,
    "glob": _parts,
    "folder": lambda folder: _parts(folder).removesuffix("/*.jsonl") and "./parts",
}


@pytest.fixture
def preview(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)

    def run(source: str, *options: str, code: int = 0) -> str:
        words = ["data", "preview", "--tokenizer", "bytes", "--rows", "99", "--format", "json", *options]
        assert main([*words, "--set", f"data.datasets=[{{{source}}}]"]) == code
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return said.out if code == 0 else said.err

    return run


@pytest.mark.parametrize("streaming", [[], ["--streaming", "--max-steps=1"]], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_rows(
    preview: Callable[..., str], tmp_path: Path, kind: str, streaming: list[str]
) -> None:
    path = KINDS[kind](tmp_path)
    found = [json.loads(line) for line in preview(f'path="{path}"', *streaming).splitlines()]
    assert [row["text"] for row in found] == [
        f"<|im_start|>user\n{row['user']}<|im_end|>\n<|im_start|>assistant\n{row['assistant']}<|im_end|>\n"
        for row in ROWS
    ]
    assert all(
        row["trained"].count(True) == len(own["assistant"].encode()) + 1 for row, own in zip(found, ROWS, strict=True)
    )


WRONG = {
    "a broken line": (
        _text("rows.jsonl", lambda: _lines() + '{"user": "x'),
        "",
        ("not JSON: Unterminated string starting at column 10", "rows.jsonl:8", "data.on_bad_row"),
    ),
    "an empty source": (_text("rows.jsonl", lambda: "\n"), "", ("the source is empty: it has no rows",)),
    "all rows fall out": (
        _text("rows.jsonl", lambda: json.dumps({"user": "x" * 2000, "assistant": "y"}) + "\n"),
        "",
        ("none of its 1 rows can be trained on (1 nothing_to_train)", "its targets lie behind the cut to max_length"),
    ),
    "a missing column": (
        _text("rows.jsonl", lambda: json.dumps({"question": "x", "answer": "y"}) + "\n"),
        "",
        ("its columns (question, answer) are those of no format", 'columns = {prompt = "question", …}'),
    ),
    "a rename of no column": (
        _text("rows.jsonl", _lines),
        ', columns={prompt="question"}',
        ("data.datasets[0].columns.prompt: there is no column 'question'", "the source has user, assistant"),
    ),
    "a column the format wants": (
        _text("rows.jsonl", _lines),
        ', format="messages"',
        ("data.datasets[0].format: format messages wants the column messages", "the source has user, assistant"),
    ),
    "mixed formats": (
        _text("rows.jsonl", lambda: _lines() + json.dumps({"text": "plain"}) + "\n"),
        "",
        ("no column prompt; the row has text", "rows.jsonl:8"),
    ),
    "a split that is not there": (
        _saved,
        ', split="validation"',
        ("data.datasets[0].split: saved has no split 'validation'", "it has train"),
    ),
    "a split no file is of": (
        _parts,
        ', split="test"',
        ("data.datasets[0].split: parts/*.jsonl has no split 'test'", "it has train"),
    ),
    "no file": (
        lambda folder: _text("rows.jsonl", _lines)(folder) and "other.jsonl",
        "",
        ("data.datasets[0]: there is no file or folder other.jsonl", "has rows.jsonl"),
    ),
    "no Parquet": (_text("rows.parquet", lambda: "not Parquet"), "", ("rows.parquet", "cannot be read")),
    "no Arrow": (_text("rows.arrow", lambda: "not Arrow"), "", ("rows.arrow", "cannot be read")),
    "no gzip": (_text("rows.jsonl.gz", lambda: "not gzip"), "", ("rows.jsonl.gz", "cannot be read")),
}


@pytest.mark.parametrize("streaming", [[], ["--streaming", "--max-steps=1"]], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_source_is_said(
    preview: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str, streaming: list[str]
) -> None:
    make, more, expected = WRONG[case]
    path = make(tmp_path)
    capsys.readouterr()
    report = preview(f'path="{path}"{more}', *streaming, code=2).replace(f"{tmp_path}/", "")
    for words in expected:
        assert words in report
