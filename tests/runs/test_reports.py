"""What `runs list` and `runs show` tell about runs in every state."""

import pytest

from sftctl.errors import RunError
from sftctl.runs.directory import Identity, claim
from sftctl.runs.metrics import MetricsWriter
from sftctl.runs.reports import disk_bytes, list_runs, show_run

IDENTITY = Identity("r", "d1", {})


def make(output_dir, name, phase="running", step=3):
    with claim(output_dir, IDENTITY, run_name=name) as run:
        run.begin(total_steps=10)
        with MetricsWriter(run.metrics) as metrics:
            for number in range(1, step + 1):
                metrics.append({"step": number, "loss": 4.0 / number})
            metrics.append({"step": step, "eval_loss": 1.5})
        run.config.write_text("")
        run.update(phase, step=step)
    return run.path


def test_a_run_without_its_process_is_interrupted(tmp_path):
    path = make(tmp_path, "killed")
    (summary,) = list_runs(tmp_path)
    assert (summary.name, summary.phase, summary.step, summary.total_steps) == ("killed", "interrupted", 3, 10)
    assert summary.loss == 4.0 / 3
    assert show_run(path).how_to_resume == f"sftctl train {path}/config.toml --resume {path}"


def test_a_run_with_its_process_is_running(tmp_path):
    with claim(tmp_path, IDENTITY, run_name="a") as run:
        run.begin(total_steps=10)
        (summary,) = list_runs(tmp_path)
        assert summary.phase == "running"
        assert show_run(run.path).how_to_resume is None


@pytest.mark.parametrize(("phase", "resumable"), [("finished", False), ("failed", True), ("interrupted", True)])
def test_ended_runs(tmp_path, phase, resumable):
    path = make(tmp_path, "a", phase)
    report = show_run(path)
    assert (report.summary.phase, report.how_to_resume is not None) == (phase, resumable)
    assert (report.first_loss, report.last_metrics["loss"], report.last_evaluation["eval_loss"]) == (4.0, 4.0 / 3, 1.5)


def test_only_whole_checkpoints_are_counted(tmp_path):
    path = make(tmp_path, "a")
    for name in ("step-20", "step-3", ".step-30.tmp", "step-x"):
        (path / "checkpoints" / name).mkdir(parents=True)
        (path / "checkpoints" / name / "manifest.json").write_text("{}")
    (path / "checkpoints" / "step-40").mkdir()
    assert [step for step, _ in show_run(path).checkpoints] == [3, 20]


def test_a_damaged_run_does_not_hide_the_others(tmp_path):
    make(tmp_path, "a")
    broken = make(tmp_path, "b")
    (broken / "state.json").write_text("{")
    summaries = {summary.name: summary for summary in list_runs(tmp_path)}
    assert summaries["a"].phase == "interrupted"
    assert "damaged" in summaries["b"].problem


def test_no_run_there(tmp_path):
    assert list_runs(tmp_path / "nowhere") == []
    with pytest.raises(RunError, match=r"there is no run .*nowhere; see 'sftctl runs list'"):
        show_run(tmp_path / "nowhere")


def test_disk_use_is_what_the_disk_gives(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 10_000)
    assert 10_000 <= disk_bytes(tmp_path) < 10_000 + 65_536
