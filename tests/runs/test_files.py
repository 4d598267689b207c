"""Atomic writes, against the faults that a disk has: full, read-only, something in the way, killed half-way."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.errors import RunError
from sftctl.runs.files import (
    human_bytes,
    json_line,
    number_from_json,
    read_json,
    write_atomically,
    write_json,
    write_json_lines,
)


def test_a_write_replaces_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    write_json(path, {"x": 2})
    assert read_json(path) == {"x": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    write_atomically(path, "old")

    def rows():
        yield {"x": 1}
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"cannot write .*a\.jsonl: the disk is full \(.* free\); free some space"):
        write_json_lines(path, rows())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_bug_in_the_caller_is_not_called_a_disk_error(tmp_path):
    with pytest.raises(TypeError, match="object has no JSON form"):
        write_json(tmp_path / "a.json", {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tiny_disk):
    path = tiny_disk / "a.bin"
    write_atomically(path, b"old")
    with pytest.raises(RunError, match=r"the disk is full \(.* free\)"):
        write_atomically(path, bytes(4 << 20))
    assert path.read_bytes() == b"old"
    assert list(tiny_disk.iterdir()) == [path]


def test_a_read_only_file_system(read_only_folder):
    with pytest.raises(RunError, match="the file system is read-only"):
        write_atomically(read_only_folder / "a.bin", b"new")


def test_a_folder_in_the_way_and_a_missing_folder(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*a\.json: a folder is in the way"):
        write_json(tmp_path / "a.json", {})
    with pytest.raises(RunError, match="No such file or directory"):
        write_json(tmp_path / "nowhere" / "a.json", {})


def test_killed_while_writing_the_reader_finds_old_or_new_but_never_half(tmp_path):
    path = tmp_path / "a.json"
    program = (
        "import sys; from pathlib import Path; from sftctl.runs.files import write_json\n"
        "for n in range(10**9): write_json(Path(sys.argv[1]), {'n': n, 'filling': ['x' * 1000] * 200, 'end': n})"
    )
    for attempt in range(4):
        writer = subprocess.Popen([sys.executable, "-c", program, str(path)])
        while not path.exists():
            time.sleep(0.005)
        time.sleep(0.02 + 0.013 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = read_json(path)
        assert content["n"] == content["end"]


@pytest.mark.parametrize("text", ['{"x": ', "[1]", "", "\x00"])
def test_a_damaged_file_is_said_to_be_damaged(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RunError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_a_file_that_is_not_there_is_none(tmp_path):
    assert read_json(tmp_path / "a.json") is None


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_float_reads_back_exactly(value):
    """Every double, the three that JSON has no number for among them, survives the file bit for bit."""
    line = json_line({"x": value})
    strict = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = number_from_json(strict["x"])
    assert (math.isnan(value) and math.isnan(back)) or (
        back == value and math.copysign(1, back) == math.copysign(1, value)
    )


def test_numpy_values_have_a_json_form(tmp_path):
    numpy = pytest.importorskip("numpy")
    write_json(tmp_path / "a.json", {"a": numpy.float32(0.1), "b": numpy.arange(2), "c": numpy.float64("nan")})
    assert read_json(tmp_path / "a.json") == {"a": float(numpy.float32(0.1)), "b": [0, 1], "c": "NaN"}


def test_sizes_for_people():
    assert [human_bytes(count) for count in (0, 1023, 1536, 5 << 30, 3 << 50)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "3072.0 TiB",
    ]


def test_files_of_a_dead_writer_do_not_stop_the_next(tmp_path):
    (tmp_path / f".a.json.{os.getpid()}.tmp").write_text("left behind")
    write_json(tmp_path / "a.json", {"x": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
