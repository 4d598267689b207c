"""Where rows come from, and what is said of a source that is not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.engine.data import digests
from sftctl.engine.data.origin import Source, SplitPart
from sftctl.engine.data.sources import open_source
from sftctl.errors import DataError

WHERE = "data.datasets[0]"


def fill(folder: Path, **files: list[int]) -> None:
    for name, numbers in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".jsonl").write_text("".join(json.dumps({"n": number}) + "\n" for number in numbers))


def numbers(path: Path | str, **settings: Any) -> list[int]:
    opened = open_source(Source(str(path), **settings), where=WHERE)
    return [line.value["n"] for line in opened.lines() if line.value is not None]


def refusal(path: Path | str, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        open_source(Source(str(path), **settings), where=WHERE)
    return str(error.value)


def test_files_folders_and_globs(tmp_path: Path) -> None:
    fill(tmp_path, b=[3], a=[1, 2], sub__c=[4])
    assert numbers(tmp_path / "a.jsonl") == [1, 2]
    assert numbers(tmp_path) == [1, 2, 3, 4]
    assert numbers(tmp_path / "*.jsonl") == [1, 2, 3]
    assert numbers(tmp_path / "**" / "*.jsonl") == [1, 2, 3, 4]
    assert numbers(tmp_path, data_files=("sub/*.jsonl", "a.jsonl")) == [4, 1, 2]
    assert numbers(tmp_path, data_dir="sub") == [4]
    assert numbers(tmp_path, limit=3) == [1, 2, 3]


def test_hidden_files_and_readmes_are_not_data(tmp_path: Path) -> None:
    fill(tmp_path, a=[1])
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "b.jsonl").write_text('{"n": 9}\n')
    assert numbers(tmp_path) == [1]


def test_splits_by_file_names(tmp_path: Path) -> None:
    fill(tmp_path, train_0=[1], train_1=[2], test=[3], validation__part=[4])
    assert numbers(tmp_path) == [1, 2]
    assert numbers(tmp_path, split="test") == [3]
    assert numbers(tmp_path, split="validation") == [4]
    assert numbers(tmp_path / "test.jsonl") == [3]
    message = refusal(tmp_path, split="dev")
    assert message.startswith(f"{WHERE}.split: {tmp_path} has no split 'dev'")
    assert message.endswith("it has test, train, validation")


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:2]", [0, 1]),
        ("train[8:]", [8, 9]),
        ("train[-3:]", [7, 8, 9]),
        ("train[:20%]", [0, 1]),
        ("train[50%:70%]", [5, 6]),
        ("train[9:99]", [9]),
    ],
)
def test_slices_of_a_split(tmp_path: Path, split: str, expected: list[int]) -> None:
    fill(tmp_path, a=list(range(10)))
    assert numbers(tmp_path / "a.jsonl", split=split) == expected


def test_a_split_that_is_none(tmp_path: Path) -> None:
    fill(tmp_path, a=[1])
    assert "'train[1' is no split" in refusal(tmp_path, split="train[1")


@given(st.integers(0, 50), st.integers(-60, 60), st.integers(-60, 60))
def test_bounds_are_those_of_a_python_slice(num_rows: int, start: int, stop: int) -> None:
    low, high = SplitPart(str(start), str(stop)).bounds(num_rows)
    assert list(range(num_rows))[low:high] == list(range(num_rows))[start:stop]


def test_what_is_not_there(tmp_path: Path) -> None:
    fill(tmp_path, rows=[1])
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    missing = refusal(tmp_path / "row.jsonl")
    assert missing.startswith(f"{WHERE}: there is no file or folder {tmp_path / 'row.jsonl'}")
    assert missing.endswith(f"{tmp_path} has rows.jsonl")
    assert "there is no file or folder rows_that_are_not.jsonl" in refusal("rows_that_are_not.jsonl")
    assert "there is no file or folder ./data" in refusal("./data")
    assert "notes.txt is of no kind that can be read" in refusal(tmp_path / "notes.txt")
    assert f"no data file matches {tmp_path}/*.csv" in refusal(tmp_path / "*.csv")
    assert f"{tmp_path / 'empty'} holds no data file" in refusal(tmp_path / "empty")
    assert "matches *.csv" in refusal(tmp_path, data_files=("*.csv",))


def test_files_of_several_kinds_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, a=[1])
    (tmp_path / "a.csv").write_text("n\n1\n")
    assert "files of several kinds: .csv, .jsonl" in refusal(tmp_path)
    assert numbers(tmp_path, data_files=("*.jsonl",)) == [1]


def test_a_save_to_disk_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"n": 1}, {"n": 2}, {"n": 3}])
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=data, test=data.select([2])).save_to_disk(str(tmp_path / "two"))
    assert numbers(tmp_path / "one") == [1, 2, 3]
    assert numbers(tmp_path / "two", split="test") == [3]
    assert numbers(tmp_path / "two", split="train[1:]") == [2, 3]
    assert "it has test, train" in refusal(tmp_path / "two", split="dev")


def test_a_hub_id_without_a_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = refusal("nobody/nothing")
    assert message.startswith(f"{WHERE}: nobody/nothing is no local file, and as a Hub data set it could not be loaded")
    assert "Couldn't reach" in message

    def unknown(*args: Any, **kwargs: Any) -> None:
        raise ValueError("Unknown split \"dev\". Should be one of ['train', 'test'].")

    monkeypatch.setattr(datasets, "load_dataset", unknown)
    assert refusal("nobody/nothing", split="dev").endswith("it has train, test")


def test_the_fingerprint_is_that_of_the_bytes(tmp_path: Path) -> None:
    fill(tmp_path, a=[1, 2], b=[1, 2], c=[1, 3])

    def fingerprint(name: str, **settings: Any) -> str:
        return open_source(Source(str(tmp_path / f"{name}.jsonl"), **settings), where=WHERE).fingerprint()

    assert fingerprint("a") == fingerprint("b")
    assert (
        len({fingerprint("a"), fingerprint("c"), fingerprint("a", limit=1), fingerprint("a", split="train[:1]")}) == 4
    )


def test_a_large_file_is_hashed_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one byte, with the old size and the old time put back."""
    monkeypatch.setattr(digests, "SMALL_FILE_BYTES", 0)
    monkeypatch.setattr(digests, "RECENT_NS", -(10**9))
    file, memo = tmp_path / "a.jsonl", tmp_path / "memo"
    file.write_bytes(b"one")
    first = digests.digest_of_file(file, memo)
    assert [path.suffix for path in memo.iterdir()] == [".json"]
    monkeypatch.setattr(digests, "_hash", lambda path: "not asked")
    assert digests.digest_of_file(file, memo) == first
    status = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digests.digest_of_file(file, memo) == "not asked"
