"""The digest of a file: written in any pieces, read back, against the library called once."""

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from sftctl.runs import hashing
from sftctl.runs.hashing import HashedFile, hash_file


@given(st.lists(st.binary(max_size=9), max_size=8), st.integers(1, 7))
def test_pieces_do_not_matter(tmp_path_factory, pieces, chunk_bytes):
    """However a file is cut into writes, its digest is that of its content, and of the file read back."""
    path = tmp_path_factory.mktemp("hash") / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(hashing, "SYNC_BYTES", 5)
        with HashedFile(path) as file:
            for piece in pieces:
                file.write(piece)
            digest = file.finish()
        content = b"".join(pieces)
        assert path.read_bytes() == content
        assert digest == xxhash.xxh3_128(content).hexdigest() == hash_file(path)
    assert file.num_bytes == len(content)


@given(st.binary(min_size=1, max_size=40), st.data())
def test_any_flipped_bit_changes_the_digest(tmp_path_factory, content, data):
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << (bit % 8)
    folder = tmp_path_factory.mktemp("hash")
    (folder / "a").write_bytes(content)
    (folder / "b").write_bytes(flipped)
    assert hash_file(folder / "a") != hash_file(folder / "b")


def test_a_full_disk_is_the_systems_error(tiny_disk):
    with pytest.raises(OSError, match="No space left"), HashedFile(tiny_disk / "a") as file:
        file.write(bytes(2 << 20))


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError):
        HashedFile(tmp_path / "a")
