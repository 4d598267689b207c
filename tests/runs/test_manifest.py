"""Checkpoints as folders: whole or absent, and every kind of damage found by name."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.errors import RunError
from sftctl.runs.hashing import hash_file
from sftctl.runs.manifest import (
    FileRecord,
    Manifest,
    leftovers,
    list_steps,
    publish,
    read_manifest,
    remove,
    step_folder,
    superfluous,
    verify,
    write_manifest,
    writing_folder,
)


def write(checkpoints, step, content=b"0123456789"):
    folder = writing_folder(checkpoints, step)
    folder.mkdir(parents=True)
    (folder / "a.bin").write_bytes(content)
    record = FileRecord(len(content), hash_file(folder / "a.bin"))
    write_manifest(folder, Manifest({"a.bin": record}, {"step": step, "loss": 0.1 + 0.2}))
    return publish(checkpoints, step)


def test_a_published_checkpoint_verifies_and_keeps_its_floats(tmp_path):
    manifest = verify(write(tmp_path, 4))
    assert (manifest.step, manifest.content["loss"]) == (4, 0.30000000000000004)
    assert list_steps(tmp_path) == [4]


@given(st.integers(0, 10 * 8 - 1))
def test_a_flipped_bit_is_found(tmp_path_factory, bit):
    """No bit of a file can change unseen."""
    folder = write(tmp_path_factory.mktemp("c"), 1)
    content = bytearray((folder / "a.bin").read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    (folder / "a.bin").write_bytes(content)
    with pytest.raises(RunError, match=r"is damaged: a\.bin is not what was written: its hash differs"):
        verify(folder)


@given(st.data())
def test_a_changed_manifest_is_found(tmp_path_factory, data):
    """Nor can the manifest itself: whatever byte of it changes, it is refused or means the same."""
    folder = write(tmp_path_factory.mktemp("c"), 1)
    before = read_manifest(folder)
    content = bytearray((folder / "manifest.json").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "manifest.json").write_bytes(content)
    try:
        after = read_manifest(folder)
    except RunError:
        return
    assert after == before


def test_a_cut_file_is_found_without_reading_it(tmp_path):
    folder = write(tmp_path, 1)
    os.truncate(folder / "a.bin", 9)
    with pytest.raises(RunError, match=r"a\.bin has 9 bytes, not 10"):
        verify(folder)


def test_a_missing_file_and_a_missing_manifest(tmp_path):
    folder = write(tmp_path, 1)
    (folder / "a.bin").unlink()
    with pytest.raises(RunError, match=r"a\.bin is missing; remove it to go on from an older one"):
        verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"it has no manifest\.json, which is written last"):
        verify(folder)


@pytest.mark.parametrize("name", ["../outside.bin", ".hidden", "a/b"])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path, name):
    (tmp_path / "outside.bin").write_bytes(b"x")
    folder = write(tmp_path / "c", 1)
    write_manifest(folder, Manifest({name: FileRecord(1, "0")}, {"step": 1}))
    with pytest.raises(RunError, match="is not the name of a file of a checkpoint"):
        verify(folder)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    folder = write(tmp_path, 1)
    (tmp_path / "elsewhere").write_bytes((folder / "a.bin").read_bytes())
    (folder / "a.bin").unlink()
    (folder / "a.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is not the name of a file of a checkpoint"):
        verify(folder)


def test_another_version_is_said_to_be_one(tmp_path):
    folder = write(tmp_path, 1)
    import hashlib

    body = json.loads((folder / "manifest.json").read_text())
    del body["digest"]
    body["format"] = 99
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    body["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(RunError, match="written by another version of sftctl"):
        read_manifest(folder)


def test_what_is_being_written_or_removed_is_not_a_checkpoint(tmp_path):
    write(tmp_path, 10)
    writing_folder(tmp_path, 20).mkdir()
    (tmp_path / ".step-5.removing").mkdir()
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-30").write_text("a file")
    assert list_steps(tmp_path) == [10]
    assert [path.name for path in leftovers(tmp_path)] == [".step-20.writing", ".step-5.removing"]
    assert list_steps(tmp_path / "nowhere") == leftovers(tmp_path / "nowhere") == []


def test_publishing_again_replaces_a_damaged_one(tmp_path):
    folder = write(tmp_path, 1)
    os.truncate(folder / "a.bin", 3)
    assert verify(write(tmp_path, 1)).step == 1


def test_removing_takes_the_name_first(tmp_path):
    folder = write(tmp_path, 1)
    (tmp_path / ".step-1.removing").mkdir()
    (tmp_path / ".step-1.removing" / "left from before").touch()
    remove(folder)
    assert list(tmp_path.iterdir()) == []
    assert folder == step_folder(tmp_path, 1)


def test_which_checkpoints_a_limit_lets_go():
    assert superfluous([10, 20, 30, 40], limit=2, keep=frozenset()) == [10, 20]
    assert superfluous([10, 20, 30, 40], limit=2, keep=frozenset([10])) == [20, 30]
    assert superfluous([10, 20, 30], limit=None, keep=frozenset()) == []


@given(st.sets(st.integers(0, 99), min_size=1), st.integers(1, 5), st.sets(st.integers(0, 99), max_size=1))
def test_the_newest_and_the_best_always_stay(steps, limit, best):
    """The newest and the best are kept, no more than the limit beside them, and what goes is older than what stays."""
    steps = sorted(steps)
    gone = superfluous(steps, limit=limit, keep=frozenset(best))
    kept = [step for step in steps if step not in gone]
    must = {steps[-1]} | (best & set(steps))
    assert must <= set(kept)
    assert len(kept) == max(min(limit, len(steps)), len(must))
    assert not gone or max(gone) < min(set(kept) - must, default=100)
