"""Two run directories, compared: every kind of difference is found, and the machine's own figures are none."""

import shutil

import pytest

from sftctl.errors import RunError
from sftctl.runs.comparison import compare_runs
from sftctl.runs.directory import Identity, claim
from sftctl.runs.hashing import hash_file
from sftctl.runs.manifest import FileRecord, Manifest, publish, write_manifest, writing_folder
from sftctl.runs.metrics import MetricsWriter


def make(folder, name, *, loss=0.5, seconds=1.0, weights=b"w", step=2, final=b"f", records=2):
    with claim(folder, Identity("r", "d", {}), run_name=name) as run:
        run.begin(total_steps=2)
        with MetricsWriter(run.metrics) as metrics:
            for number in range(1, records + 1):
                metrics.append({"step": number, "loss": loss, "step_seconds": seconds, "grad_norm": float("nan")})
        writing = writing_folder(run.checkpoints, step)
        writing.mkdir(parents=True)
        (writing / "tensors-0.safetensors").write_bytes(weights)
        record = FileRecord(len(weights), hash_file(writing / "tensors-0.safetensors"))
        write_manifest(writing, Manifest({"tensors-0.safetensors": record}, {"step": step, "time": name}))
        publish(run.checkpoints, step)
        run.final.mkdir()
        (run.final / "model.safetensors").write_bytes(final)
    return run.path


def test_runs_that_differ_only_in_their_times_are_the_same(tmp_path):
    found = compare_runs(make(tmp_path, "a"), make(tmp_path, "b", seconds=9.0))
    assert found.differences == ()
    assert found.equal == (
        "2 records of metrics.jsonl",
        "1 files of the last checkpoint: weights, optimiser, random generators",
        "1 files of the final model",
    )


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"loss": 0.5000000000000001}, "step 1: loss 0.5 and 0.5000000000000001"),
        ({"weights": b"x"}, "the checkpoint of step 2: tensors-0.safetensors differs"),
        ({"step": 1}, "the last checkpoints are of steps 2 and 1"),
        ({"final": b"g"}, "final/model.safetensors differs"),
        ({"records": 1}, "metrics.jsonl: 2 and 1 records"),
    ],
)
def test_every_other_difference_is_found(tmp_path, change, difference):
    found = compare_runs(make(tmp_path, "a"), make(tmp_path, "b", **change))
    assert difference in found.differences
    assert len(found.equal) == 2


def test_a_missing_final_model_is_a_difference_and_a_missing_run_an_error(tmp_path):
    left, right = make(tmp_path, "a"), make(tmp_path, "b")
    shutil.rmtree(right / "final")
    assert compare_runs(left, right).differences == ("final/model.safetensors differs",)
    with pytest.raises(RunError, match="is not a run directory"):
        compare_runs(left, tmp_path / "nowhere")
