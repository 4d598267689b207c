"""Full disks, read-only folders, things in the way, two processes: one clear message, nothing complete lost."""

from __future__ import annotations

import contextlib
import subprocess

import pytest


@pytest.fixture
def small_disk(tmp_path):
    """A file system of four mebibytes: some checkpoints of the small run, not all of them."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"mounting a small file system is not allowed here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path):
    """Take what room there is, also what is freed meanwhile."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.parametrize("async_save", ["--async-save", "--no-async-save"])
def test_a_disk_that_fills_up_stops_the_run_with_its_checkpoints_whole(
    launcher, config, small_disk, never_stopped, check, async_save
):
    """When there is room again, the same command ends as the run that never stopped."""
    words = ["train", str(config), "--output-dir", str(small_disk), "--run-name=run", async_save]
    run = small_disk / "run"
    started = launcher.start(*words)
    started.wait_until(lambda: check.last_step(run) >= 2)
    fill(small_disk / "filler")
    code = started.wait()
    assert code == 1, started.said
    assert "the disk is full (" in started.said
    assert "free some space" in started.said
    assert "Traceback" not in started.said
    assert check.last_step(run) >= 2
    (small_disk / "filler").unlink()
    code, said = launcher.run(*words)
    assert code == 0, said
    check.same_run(run, never_stopped)


def test_a_disk_that_is_full_from_the_start(launcher, config, small_disk):
    fill(small_disk / "filler")
    code, said = launcher.run("train", str(config), "--output-dir", str(small_disk), "--run-name=run")
    assert code == 2
    assert "the disk is full" in said
    assert "Traceback" not in said
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


NO_LONGER_ROOT = """
import ctypes, os
if os.geteuid() == 0:
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    for index in (0, 1):  # effective, permitted: without CAP_DAC_OVERRIDE and its like
        data[index] &= ~0b1111
    assert libc.capset(header, data) == 0
"""

NO_ROOM = """
import errno, os
from sftctl.runs.hashing import HashedFile
write, count = os.write, [0]
def refusing(descriptor, data):
    count[0] += len(data)
    if count[0] > 2_000_000:
        raise OSError(errno.ENOSPC, "No space left on device")
    return write(descriptor, data)
os.write = refusing
"""


@pytest.mark.parametrize("async_save", ["--async-save", "--no-async-save"])
def test_a_disk_without_room_for_the_next_checkpoint(launcher, words, tmp_path, never_stopped, check, async_save):
    """The same where nothing can be mounted: the system's answer to a write of a checkpoint is injected."""
    code, said = launcher.run(*words, async_save, patch=NO_ROOM)
    assert code == 1, said
    assert "the disk is full (" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    reached = check.last_step(tmp_path / "run")
    assert 0 < reached < 30
    code, said = launcher.run(*words)
    assert (code, f"going on from {tmp_path}/run/checkpoints/step-{reached}," in said) == (0, True), said
    check.same_run(tmp_path / "run", never_stopped)


def test_a_read_only_folder(launcher, config, read_only_folder):
    code, said = launcher.run("train", str(config), "--output-dir", str(read_only_folder), "--run-name=run")
    assert code == 2
    assert f"cannot make {read_only_folder}/run: the file system is read-only" in said
    assert "Traceback" not in said


def test_a_folder_of_somebody_else(launcher, config, tmp_path):
    """Permission bits bind everybody but root; where the tests are root, the run gives up being root first."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    folder.chmod(0o555)
    code, said = launcher.run("train", str(config), "--output-dir", str(folder), "--run-name=run", patch=NO_LONGER_ROOT)
    assert code == 2, said
    assert f"cannot make {folder}/run: permission denied" in said
    assert "set run.output_dir to a folder of yours" in said
    assert "Traceback" not in said
    assert list(folder.iterdir()) == []


def test_a_run_directory_that_has_become_read_only(launcher, words, tmp_path, check):
    """Remounted read-only, as a disk with errors is: said at once, before the rows are prepared."""
    run = tmp_path / "run"
    started = launcher.start(*words)
    started.wait_until(lambda: check.last_step(run) >= 2)
    started.send(9)
    started.wait()
    subprocess.run(["mount", "--bind", str(run), str(run)], check=False, capture_output=True)
    done = subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], capture_output=True)
    if done.returncode:
        pytest.skip("bind mounts are not allowed here")
    try:
        code, said = launcher.run(*words)
    finally:
        subprocess.run(["umount", str(run)], check=True)
    assert code == 2
    assert "the file system is read-only" in said
    assert "Traceback" not in said
    assert "prepare the rows" not in said


def test_a_file_where_the_checkpoints_go(launcher, words, tmp_path):
    started = launcher.start(*words, "--save-steps=1000")
    started.wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    started.send(9)
    started.wait()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    code, said = launcher.run(*words, "--save-steps=1000")
    assert code == 1
    assert "checkpoints" in said
    assert "Traceback" not in said
    assert (tmp_path / "run" / "checkpoints").read_text() == "in the way"


def test_the_second_of_two_processes_is_refused_and_the_first_goes_on(launcher, words, tmp_path, never_stopped, check):
    run = tmp_path / "run"
    first = launcher.start(*words)
    first.wait_until(lambda: (run / "state.json").exists())
    code, said = launcher.run(*words)
    assert code == 2
    assert f"{run} is in use by process {first.pid} on " in said
    assert "Traceback" not in said
    assert first.wait() == 0, first.said
    check.same_run(run, never_stopped)
