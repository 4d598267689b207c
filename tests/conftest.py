"""Real disks with real faults: small in-memory file systems, mounted where the tests run as root."""

import os
import signal
import subprocess

import pytest
from hypothesis import HealthCheck, settings

# How fast a busy machine draws and runs an example says nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory):
    """Prepared data goes to a folder of this session, not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _hangs_up_as_in_a_terminal():
    """Under nohup SIGHUP is ignored, here and in every program that a test starts; a handler is not inherited."""
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)
    yield
    signal.signal(signal.SIGHUP, before)


def _mount(folder, options):
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.decode().strip()}")
    return folder


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of one mebibyte."""
    folder = _mount(tmp_path / "disk", "size=1m")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only_folder(tmp_path):
    """A file system that refuses every write, to root too."""
    folder = _mount(tmp_path / "read-only", "ro,size=1m")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
