"""The tree digest: written in any pieces, read side by side, against the short way."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftctl.runs.hashing import HashedFile, hash_file, tree_digest


def h(data):
    return hashlib.sha256(data).digest()


def test_five_bytes_in_chunks_of_two():
    assert tree_digest(b"abcde", chunk_bytes=2) == h(h(b"ab") + h(b"cd") + h(b"e")).hex()


@given(st.lists(st.binary(max_size=9), max_size=8), st.integers(1, 7))
def test_pieces_do_not_matter(tmp_path_factory, pieces, chunk_bytes):
    """However a file is cut into writes, its digest is that of its content, and of the file read back."""
    path = tmp_path_factory.mktemp("hash") / "a"
    with HashedFile(path, chunk_bytes=chunk_bytes) as file:
        for piece in pieces:
            file.write(piece)
        digest = file.finish()
    content = b"".join(pieces)
    assert path.read_bytes() == content
    assert digest == tree_digest(content, chunk_bytes=chunk_bytes) == hash_file(path, chunk_bytes=chunk_bytes)
    assert file.num_bytes == len(content)


@given(st.binary(min_size=1, max_size=40), st.data())
def test_any_flipped_bit_changes_the_digest(content, data):
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << (bit % 8)
    assert tree_digest(bytes(flipped), chunk_bytes=8) != tree_digest(content, chunk_bytes=8)


def test_a_full_disk_is_the_systems_error(tiny_disk):
    with pytest.raises(OSError, match="No space left"), HashedFile(tiny_disk / "a") as file:
        file.write(bytes(2 << 20))


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError):
        HashedFile(tmp_path / "a")
