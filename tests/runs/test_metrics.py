"""metrics.jsonl over crashes and resumes."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.errors import RunError
from sftctl.runs.metrics import MetricsWriter, cut_after, last_record, read_metrics


def write(path, steps, after_step=0):
    with MetricsWriter(path, after_step=after_step) as writer:
        for step in steps:
            writer.append({"step": step, "loss": 1 / (step + 2)})


def test_records_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.append({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "learning_rate": 0.1 + 0.2})
    (record,) = read_metrics(path)
    assert record["loss"] != record["loss"]
    assert (record["grad_norm"], record["learning_rate"]) == (float("inf"), 0.30000000000000004)


@given(written=st.integers(0, 12), checkpoint=st.integers(1, 12), cut=st.integers(0, 40))
def test_a_resumed_file_is_the_file_of_a_run_that_never_stopped(tmp_path_factory, written, checkpoint, cut):
    """Whatever was written beyond the checkpoint, and wherever the crash cut it, the end is the same, byte for byte."""
    folder = tmp_path_factory.mktemp("metrics")
    whole, stopped = folder / "whole.jsonl", folder / "stopped.jsonl"
    write(whole, range(1, 13))
    last = max(written, checkpoint)
    write(stopped, range(1, last + 1))
    if last > checkpoint:  # what lies beyond the checkpoint may be cut anywhere, up to its own length
        lines = stopped.read_bytes().splitlines(keepends=True)
        beyond = sum(map(len, lines[checkpoint:]))
        os.truncate(stopped, stopped.stat().st_size - min(cut, beyond))
    write(stopped, range(checkpoint + 1, 13), after_step=checkpoint)
    assert stopped.read_bytes() == whole.read_bytes()


def test_readers_pass_over_a_half_written_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    with open(path, "ab") as file:
        file.write(b'{"step": 3, "lo')
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    assert cut_after(path, 2) == 0
    assert path.read_bytes().endswith(b"}\n")


def test_evaluations_of_the_last_kept_step_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        for record in ({"step": 0, "eval_loss": 3.0}, {"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 2.5}):
            writer.append(record)
        writer.append({"step": 2, "loss": 1.0})
    assert cut_after(path, 1) == 1
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 1]


def test_a_run_that_starts_from_nothing_starts_its_file_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    write(path, [1])
    assert [record["step"] for record in read_metrics(path)] == [1]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        list(read_metrics(path))


def test_no_file_has_no_records(tmp_path):
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == []


def test_a_full_disk_leaves_whole_lines_and_goes_on_when_there_is_room(tiny_disk):
    path = tiny_disk / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.append({"step": 1})
        (tiny_disk / "filler").write_bytes(bytes((1 << 20) - 3 * 4096))
        with pytest.raises(RunError, match="the disk is full"):
            writer.append({"step": 2, "text": "x" * 100_000})
        (tiny_disk / "filler").unlink()
        writer.append({"step": 2})
        writer.sync()
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


def test_the_last_record_is_found_from_the_end_of_a_long_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_record(path, having="loss") is None
    with MetricsWriter(path) as writer:
        for step in range(1, 2001):
            writer.append({"step": step, "loss": float("nan") if step == 2000 else 1.0, "filling": "x" * 50})
        writer.append({"step": 2000, "eval_loss": 1.0})
    with open(path, "ab") as file:
        file.write(b'{"step": 2001, "loss": 1')
    found = last_record(path, having="loss")
    assert found["step"] == 2000
    assert found["loss"] != found["loss"]
    assert last_record(path, having="nothing") is None
