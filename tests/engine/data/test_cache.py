"""Prepared data by content: any change another entry, damage mended, two processes no harm."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftctl.engine.data import cache
from sftctl.engine.data.prepare import Prepared, Source, default_cache_dir, prepare
from sftctl.engine.data.store import INDEX, check_store
from sftctl.engine.model.tokenizer import byte_tokenizer
from sftctl.errors import DataError

ROWS = [
    {"messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "é" * n}]} for n in range(40)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def run(path: str, folder: Path | None, tokenizer: Any = None, **settings: Any) -> Prepared:
    source = Source(path, **settings.pop("source", {}))
    return prepare((source,), tokenizer=tokenizer or byte_tokenizer(), cache_dir=folder, **settings)


def test_the_second_start_reads_the_same_from_the_cache(write_rows: Callable[..., str], folder: Path) -> None:
    path = write_rows(ROWS)
    bare, first, second = run(path, None), run(path, folder), run(path, folder)
    assert (bare.cached, first.cached, second.cached) == (False, False, True)
    assert bare.fingerprint == first.fingerprint == second.fingerprint
    assert bare.ledger == first.ledger == second.ledger
    assert bare.proof == first.proof == second.proof
    for index in range(len(bare)):
        assert second.sample(index).labels.tolist() == bare.sample(index).labels.tolist()


def test_every_change_makes_another_entry(write_rows: Callable[..., str], folder: Path, monkeypatch: Any) -> None:
    """Of the source's bytes, of how it is read, of the tokenizer, its template, a setting, or the code."""
    path = write_rows(ROWS)
    changed = byte_tokenizer()
    changed.chat_template = changed.chat_template.replace("user", "User") + " "
    grown = byte_tokenizer()
    grown.add_tokens(["ééé"])
    other_eos = byte_tokenizer()
    other_eos.eos_token = "<|endoftext|>"
    runs: list[dict[str, Any]] = [
        {},
        {"tokenizer": changed},
        {"tokenizer": grown},
        {"tokenizer": other_eos},
        {"max_length": 60},
        {"max_length": 60, "truncation_mode": "keep_end"},
        {"assistant_only_loss": True},
        {"last_turn_only_loss": True},
        {"on_bad_row": "skip"},
        {"source": {"limit": 39}},
        {"source": {"format": "messages"}},
        {"source": {"split": "train[1:]"}},
    ]
    for number, settings in enumerate(runs, start=1):
        assert not run(path, folder, **settings).cached
        assert len(entries(folder)) == number
    assert all(run(path, folder, **settings).cached for settings in runs)
    write_rows([*ROWS[:-1], {**ROWS[-1], "extra": 0}])
    assert not run(path, folder).cached
    monkeypatch.setattr(cache, "_digest_of_code", lambda: "other code")
    assert not run(path, folder).cached


@pytest.mark.parametrize("name", ["ids", "flags", "starts", "answers", "rows", "whole", "index"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_a_damaged_entry_is_made_again(write_rows: Callable[..., str], folder: Path, name: str, damage: str) -> None:
    path = write_rows(ROWS)
    before = run(path, folder)
    labels = [before.sample(index).labels.tolist() for index in range(len(before))]
    file = entries(folder)[0] / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    status = file.stat()
    file.write_bytes({"flip": bytes(content), "cut": bytes(content[:-5]), "empty": b"", "remove": b""}[damage])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    if damage == "remove":
        file.unlink()
    after = run(path, folder)
    assert not after.cached
    assert [after.sample(index).labels.tolist() for index in range(len(after))] == labels
    assert run(path, folder).cached


def test_no_flipped_bit_of_the_index_is_believed(write_rows: Callable[..., str], folder: Path) -> None:
    """The counts of the ledger and of the mask proof stand in it."""
    run(write_rows(ROWS), folder)
    (entry,) = entries(folder)
    whole = (entry / INDEX).read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (entry / INDEX).write_bytes(damaged)
        with pytest.raises(ValueError):
            check_store(entry)
    (entry / INDEX).write_bytes(whole)
    check_store(entry)


def test_rows_left_out_come_back_from_the_cache_and_their_damage_is_found(
    write_rows: Callable[..., str], folder: Path
) -> None:
    path = write_rows([*ROWS, {"messages": "no"}, {"messages": []}])
    first = run(path, folder, on_bad_row="skip")
    again = run(path, folder, on_bad_row="skip")
    assert again.cached
    assert [row.row for row in again.ledger.dropped()] == [row.row for row in first.ledger.dropped()] == [41, 42]
    (entries(folder)[0] / "dropped.jsonl").write_text("")
    assert not run(path, folder, on_bad_row="skip").cached


def test_what_a_dead_process_left_is_no_entry_and_goes(write_rows: Callable[..., str], folder: Path) -> None:
    path = write_rows(ROWS)
    run(path, folder)
    done = entries(folder)[0]
    for file in done.iterdir():
        file.unlink()
    done.rename(folder / f"{done.name}.abc.tmp")
    assert not run(path, folder).cached
    assert entries(folder) == [done]


def test_a_failed_source_leaves_nothing_behind(write_rows: Callable[..., str], folder: Path) -> None:
    with pytest.raises(DataError):
        run(write_rows([*ROWS, {"messages": "no"}]), folder)
    assert entries(folder) == []


PREPARE = """
import sys
from pathlib import Path
from sftctl.engine.data.prepare import Source, prepare
from sftctl.engine.model.tokenizer import byte_tokenizer
tokenizer = byte_tokenizer()
print("ready", flush=True)
sys.stdin.readline()
prepared = prepare((Source(sys.argv[1]),), tokenizer=tokenizer, cache_dir=Path(sys.argv[2]))
print(prepared.cached, prepared.fingerprint)
"""


def test_two_processes_make_an_entry_once(write_rows: Callable[..., str], folder: Path) -> None:
    path = write_rows(ROWS * 20)
    words = [sys.executable, "-c", PREPARE, path, str(folder)]
    workers = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker)
            stack.callback(worker.kill)
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        found = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert sorted(cached for cached, _ in found) == ["False", "True", "True"]
    assert {fingerprint for _, fingerprint in found} == {run(path, None).fingerprint}
    assert len(entries(folder)) == 1


def test_a_folder_that_cannot_be_written_is_one_clear_error(write_rows: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"data.cache_dir: prepared data cannot be written to .*file/x: Not a directory"
    ):
        run(write_rows(ROWS), tmp_path / "file" / "x")


def test_an_unchanged_entry_is_not_read_through_again(
    write_rows: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(ROWS)
    run(path, folder)
    checked = entries(folder)[0] / cache.CHECKED
    known = json.loads(checked.read_text())
    checked.write_text(json.dumps({**known, "time": known["time"] + 10 * cache.RECENT_NS}))
    monkeypatch.setattr(cache, "check_store", lambda folder: pytest.fail("read through"))
    assert run(path, folder).cached


def test_the_default_folder_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "sftctl" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "sftctl" / "data"


def test_weights_survive_the_cache(write_rows: Callable[..., str], folder: Path) -> None:
    heavy = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]}
    rows = [*ROWS * 30, heavy]  # a second chunk brings the first weight
    path = write_rows(rows)
    bare, cached = run(path, None), run(path, folder)
    assert bare.fingerprint == cached.fingerprint
    for prepared in (bare, cached):
        last = prepared.sample(len(prepared) - 1)
        assert last.weights is not None
        assert 0.5 in last.weights.tolist()
        first = prepared.sample(0)
        assert first.weights is not None
        assert set(first.weights[1:].tolist()) == {1.0}


def test_templates_that_name_the_day_are_keyed_by_the_day(chat: Any) -> None:
    from datetime import datetime

    from sftctl.engine.data.templates import ChatTemplate

    source = chat("byte_level", "llama3").chat_template
    days = [ChatTemplate(source, {}, now=lambda day=day: datetime(2030, 1, day)).digest_text for day in (1, 1, 2)]
    assert days[0] == days[1] != days[2]
    plain = [ChatTemplate("x", {}, now=lambda day=day: datetime(2030, 1, day)).digest_text for day in (1, 2)]
    assert plain[0] == plain[1]
