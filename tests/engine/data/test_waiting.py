"""Every place in the data path that waits, and that none waits for ever: each test has a limit in seconds."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sftctl.engine.data import cache, pipeline
from sftctl.engine.data.origin import Source
from sftctl.engine.data.pipeline import Pipeline
from sftctl.engine.data.prepare import prepare
from sftctl.engine.data.sources import open_source
from sftctl.engine.data.tokens import Encoder
from sftctl.engine.data.worker import Kit, Made, Settings
from sftctl.engine.model.tokenizer import byte_tokenizer
from sftctl.errors import DataError

LIMIT_SECONDS = 90
Write = Callable[..., str]


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that waits for ever ends the whole run, and says where every thread stood."""
    monkeypatch.setattr(pipeline, "CHUNK_ROWS", 4)
    faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def made(path: str, num_proc: int | None = None, **settings: Any) -> Iterator[Made]:
    source = Source(path)
    opened = open_source(source, where="data.datasets[0]")
    pipe = Pipeline(source, opened, Settings(**settings), Kit(byte_tokenizer()), num_proc=num_proc)
    return pipe.made(enumerate(opened.lines(), start=1))


def texts(count: int) -> list[dict[str, str]]:
    return [{"text": f"row {n}"} for n in range(count)]


def test_a_worker_that_is_killed_is_one_clear_error(write_rows: Write) -> None:
    chunks = made(write_rows(texts(400)), num_proc=2)
    next(chunks)
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"data.dataset_num_proc: a process that prepares rows ended before its work"):
        list(chunks)


def test_a_bad_row_in_a_worker_ends_the_others(write_rows: Write) -> None:
    rows: list[Any] = texts(400)
    rows[100] = {"text": 5}
    with pytest.raises(DataError, match=r"rows\.jsonl:101"):
        list(made(write_rows(rows), num_proc=2))
    _no_children_soon()


@pytest.mark.parametrize("num_proc", [None, 2])
def test_rows_that_nobody_reads_on_are_let_go(write_rows: Write, num_proc: int | None) -> None:
    chunks = made(write_rows(texts(400)), num_proc)
    next(chunks)
    started = time.monotonic()
    chunks.close()  # type: ignore[attr-defined]  # a generator
    assert time.monotonic() - started < 5
    _no_children_soon()


def test_rows_may_be_let_go_in_another_thread_while_they_are_made(
    write_rows: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the garbage collector does."""
    chunks = made(write_rows(texts(40)))
    next(chunks)
    begun, go_on = threading.Event(), threading.Event()
    encode = Encoder.encode

    def slow(self: Encoder, texts: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "encode", slow)
    reader = threading.Thread(target=lambda: next(chunks))
    reader.start()
    assert begun.wait(30)
    go_on.set()
    reader.join(30)
    closer = threading.Thread(target=chunks.close)  # type: ignore[attr-defined]  # a generator
    closer.start()
    closer.join(30)
    assert not closer.is_alive()


def test_an_error_in_the_thread_that_tokenises_comes_out(write_rows: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Encoder, texts: Any) -> Any:
        raise MemoryError("no memory")

    monkeypatch.setattr(Encoder, "encode", fails)
    with pytest.raises(MemoryError, match="no memory"):
        list(made(write_rows(texts(40))))


HOLD = """
import sys, time
from pathlib import Path
from sftctl.engine.data.cache import _locked
with _locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_whose_holder_is_killed_is_free(
    write_rows: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another start waits for the entry while it is made, and makes it where its maker dies."""
    path, folder = write_rows(texts(9)), tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr("sftctl.engine.data.prepare.key_of", lambda *parts: "key")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder / "key.lock")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        results: list[Any] = []
        waiting = threading.Thread(
            target=lambda: results.append(prepare([Source(path)], tokenizer=byte_tokenizer(), cache_dir=folder))
        )
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive()
        holder.kill()
        waiting.join(30)
    assert len(results[0]) == 9
    assert not results[0].cached
    assert (folder / "key" / cache.CHECKED).exists()


def _no_children_soon() -> None:
    end = time.monotonic() + 30
    while multiprocessing.active_children():
        assert time.monotonic() < end
        time.sleep(0.05)
