"""Every kind of local file gives the same rows, and a broken line its file and its number."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from sftctl.engine.data.readers import READERS, kind_of

ROWS: list[dict[str, Any]] = [
    {"prompt": "naïve 😀\nline two", "completion": 'a "quoted", b'},
    {"prompt": "", "completion": "c"},
]


def read(path: Path) -> list[tuple[int | None, Any, str | None]]:
    return [(line.line, line.value, line.error) for line in READERS[kind_of(path) or ""](path)]


def values(path: Path) -> list[Any]:
    return [value for _, value, _ in read(path)]


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "lines.json").write_text(lines, encoding="utf-8")
    (tmp_path / "array.json").write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0], indent=2), encoding="utf-8")
    (tmp_path / "bom.jsonl").write_text("\ufeff\n" + lines, encoding="utf-8")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(lines)
    table = pa.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    quoted = [[field.replace('"', '""') for field in row.values()] for row in ROWS]
    csv = "prompt,completion\n" + "".join(",".join(f'"{field}"' for field in row) + "\n" for row in quoted)
    (tmp_path / "a.csv").write_text(csv, encoding="utf-8-sig")
    (tmp_path / "a.tsv").write_text(csv.replace('","', '"\t"').replace("prompt,", "prompt\t"), encoding="utf-8")
    for path in tmp_path.iterdir():
        assert values(path) == (ROWS[:1] if path.name == "one.json" else ROWS), path.name


def test_broken_lines_are_named_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n[1]\n{"a": "\xff"}\n   \nnull\n{"a": 2}')
    assert [line for line in read(path) if line[2] is None] == [(1, {"a": 1}, None), (8, {"a": 2}, None)]
    assert [(line, error) for line, _, error in read(path) if error is not None] == [
        (3, "not JSON: Expecting value at column 1"),
        (4, "a row is an object with named columns, and this is a list"),
        (5, "not UTF-8: invalid start byte at byte 7 of the line"),
        (7, "a row is an object with named columns, and this is null"),
    ]


def test_a_broken_array_says_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n  {"a": 1},\n  {"a" 2}\n]')
    assert read(path) == [(3, None, "not JSON: Expecting ':' delimiter at column 8")]


def test_a_csv_record_with_a_field_too_many_says_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,2\n1,2,3\n"x\ny",4\n')
    assert read(path) == [
        (2, {"a": "1", "b": "2"}, None),
        (3, None, "3 fields where the header has 2"),
        (5, {"a": "x\ny", "b": "4"}, None),
    ]


def test_nulls_that_columns_put_into_structs_are_taken_out(tmp_path: Path) -> None:
    """A Parquet struct has every key of any row; a template must not see a tool_calls that nobody wrote."""
    messages = [[{"role": "user", "content": "u"}], [{"role": "assistant", "tool_calls": [{"id": "1"}]}]]
    pyarrow.parquet.write_table(pa.Table.from_pylist([{"messages": m} for m in messages]), tmp_path / "a.parquet")
    assert [value["messages"] for value in values(tmp_path / "a.parquet")] == messages


@pytest.mark.parametrize(
    ("name", "kind"), [("a.JSONL", ".jsonl"), ("a.txt", None), ("a.csv.gz", ".csv"), ("a.gz", None)]
)
def test_the_suffix_decides(name: str, kind: str | None) -> None:
    assert kind_of(Path(name)) == kind


def test_a_csv_line_that_is_not_utf_8_is_named_and_the_next_is_read(tmp_path: Path) -> None:
    """And empty lines are no rows."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,completion\na,b\n\xff,c\n\nd,e\n\n")
    lines = list(READERS[".csv"](path, 0, 0))
    assert [(line.line, line.value and line.value["prompt"]) for line in lines] == [(2, "a"), (3, None), (5, "d")]
    assert lines[1].error == "not UTF-8"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_json_that_python_cannot_hold_is_a_bad_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    start = "[" if name == "rows.json" else ""
    for text in ('{"a": ' + "[" * 100_000, '{"a": ' + "1" * 5000 + "}"):
        path.write_text(f"{start}{text}\n")
        (line,) = READERS[path.suffix](path, 0, 0)
        assert line.value is None
        assert "not JSON" in (line.error or "")
