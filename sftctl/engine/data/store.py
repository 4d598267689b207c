"""Prepared rows of one source: arrays on disk, memory-mapped, or in memory.

    Writer.append(chunk)*  ->  Store

| array | dtype | shape |
|---|---|---|
| ids | int32 | tokens |
| flags | uint8 | tokens: TRAINED, STRADDLES, STOPS |
| weights | float32 | tokens; only where some weight is not 1 |
| starts | int64 | rows + 1: where each row's tokens begin, and where the last one's end |
| whole | int32 | rows: their lengths before any cut |
| answers | int32 | rows, 2 |
| rows | int64 | rows: the row's number in its source, from 1 |

Properties: chunks are written as they come, so that memory does not grow with the data; an entry on disk is
complete or absent (written aside, its index last, then renamed); the fingerprint follows from the contents alone.

Trade-off: five bytes a token, not compressed, so that a start is a memory map and not a read: 0.01 s for
GSM8K's 8 MB, and the same for 100 GB.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sftctl.engine.data.digests import DIGEST_BYTES, digest_of_file, digest_of_text
from sftctl.engine.data.labels import Chunk
from sftctl.engine.data.ledger import DROPPED, Dropped, DroppedBook, DroppedFile

DTYPES: dict[str, Any] = {
    "ids": np.int32,
    "flags": np.uint8,
    "weights": np.float32,
    "starts": np.int64,
    "whole": np.int32,
    "answers": np.int32,
    "rows": np.int64,
}
INDEX = "index"
BLOCK_ROWS = 1024
TRAINED, STRADDLES, STOPS = 1, 2, 4
NOTHING = hashlib.blake2b(digest_size=DIGEST_BYTES).hexdigest()


@dataclass(frozen=True, slots=True)
class Store:
    """The rows of one source, by position. `meta` is what the tally said: plain data."""

    ids: NDArray[np.int32]
    flags: NDArray[np.uint8]
    weights: NDArray[np.float32] | None
    starts: NDArray[np.int64]
    whole: NDArray[np.int32]
    answers: NDArray[np.int32]
    rows: NDArray[np.int64]
    fingerprint: str
    meta: Mapping[str, Any]
    dropped: Iterable[Dropped] = ()

    def __len__(self) -> int:
        return len(self.starts) - 1

    def lengths_of(self, rows: NDArray[np.integer]) -> NDArray[np.int32]:
        """How many tokens these rows have."""
        lengths: NDArray[np.int64] = self.starts[rows + 1] - self.starts[rows]
        return lengths.astype(np.int32)

    def num_trained(self) -> NDArray[np.int32]:
        """How many tokens of each row train; reads the store a block of rows at a time."""
        counts = np.zeros(len(self), dtype=np.int32)
        for begin in range(0, len(self), BLOCK_ROWS):
            starts = self.starts[begin : begin + BLOCK_ROWS + 1]
            trains = (self.flags[starts[0] : starts[-1]] & TRAINED).astype(np.int32)
            counts[begin : begin + BLOCK_ROWS] = np.add.reduceat(trains, starts[:-1] - starts[0])
        return counts

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Which tokens train, of all rows: reads the whole array."""
        return (self.flags & TRAINED).astype(bool)


class Writer:
    """Takes chunks, in order; to files in `folder`, or to memory where that is None."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self.dropped = DroppedBook(folder)
        self._parts: dict[str, list[NDArray[Any]]] = {name: [] for name in DTYPES}
        self._files: dict[str, IO[bytes]] = {}
        self._hash = {name: hashlib.blake2b(digest_size=DIGEST_BYTES) for name in DTYPES}
        self._num_tokens = 0
        self._weighted = False
        self._put("starts", np.zeros(1))

    def append(self, chunk: Chunk, rows: NDArray[np.int64]) -> None:
        """Write a chunk; `rows` are its rows' numbers in the source."""
        if chunk.weights is not None and not self._weighted:
            self._weighted = True
            self._put_ones(self._num_tokens)
        self._put("ids", chunk.ids)
        flags = chunk.trained * np.uint8(TRAINED) + chunk.straddling * np.uint8(STRADDLES)
        self._put("flags", flags + chunk.stops * np.uint8(STOPS))
        if self._weighted:
            self._put("weights", np.ones(len(chunk.ids), np.float32) if chunk.weights is None else chunk.weights)
        self._put("starts", chunk.offsets[1:] + self._num_tokens)
        self._put("whole", chunk.whole)
        self._put("answers", chunk.answers)
        self._put("rows", rows)
        self._num_tokens += len(chunk.ids)

    def finish(self, meta: Mapping[str, Any]) -> Store:
        """Close, and give back what was written."""
        self.close()
        names = [name for name in DTYPES if name != "weights" or self._weighted]
        fingerprint = hashlib.blake2b(
            json.dumps([[name, self._hash[name].hexdigest()] for name in names if name != "rows"]).encode(),
            digest_size=DIGEST_BYTES,
        ).hexdigest()
        if self._folder is not None:
            index = {"fingerprint": fingerprint, "weighted": self._weighted, "meta": dict(meta)}
            index["digests"] = {name: self._hash[name].hexdigest() for name in names}
            if len(self.dropped):
                index["dropped"] = digest_of_file(self._folder / DROPPED)
            _write_index(self._folder, index)
            return read_store(self._folder)
        arrays = {name: _joined(self._parts[name], name) for name in names}
        return _store(arrays, fingerprint, meta, self.dropped.rows())

    def close(self) -> None:
        """Close the files; also on the way out of a source that is refused."""
        for file in self._files.values():
            file.close()
        self.dropped.close()

    def _put(self, name: str, values: NDArray[Any]) -> None:
        array = np.ascontiguousarray(values, dtype=DTYPES[name])
        self._hash[name].update(array.data)
        if self._folder is None:
            self._parts[name].append(array)
            return
        if name not in self._files:
            self._files[name] = (self._folder / name).open("wb")
        self._files[name].write(array.data)

    def _put_ones(self, count: int) -> None:
        step = 2**20
        for start in range(0, count, step):
            self._put("weights", np.ones(min(step, count - start), np.float32))


def _write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """The index, and the digest of its own text: the ledger and the proof stand in it, so it is held to one too."""
    text = json.dumps(index)
    (folder / INDEX).write_text(f"{digest_of_text(text)}\n{text}")


def _read_index(folder: Path) -> dict[str, Any]:
    """The index; ValueError where its text is not what was written."""
    digest, _, text = (folder / INDEX).read_text().partition("\n")
    if digest_of_text(text) != digest:
        raise ValueError(f"{folder / INDEX} is damaged")
    index: dict[str, Any] = json.loads(text)
    return index


def read_store(folder: Path) -> Store:
    """Memory-map an entry. Raises OSError, ValueError or KeyError where it is not whole."""
    index = _read_index(folder)
    arrays = {name: _mapped(folder / name, name) for name in index["digests"]}
    return _store(arrays, index["fingerprint"], index["meta"], DroppedFile(folder / DROPPED))


def check_store(folder: Path) -> None:
    """Read an entry whole and hold it against its digests; raises ValueError where they differ."""
    index = _read_index(folder)
    digests = dict(index["digests"])
    if "dropped" in index:
        digests[DROPPED] = index["dropped"]
    for name, digest in digests.items():
        path = folder / name
        if (digest_of_file(path) if path.exists() else NOTHING) != digest:
            raise ValueError(f"{path} is damaged")


def _store(
    arrays: Mapping[str, NDArray[Any]], fingerprint: str, meta: Mapping[str, Any], dropped: Iterable[Dropped]
) -> Store:
    store = Store(
        ids=arrays["ids"],
        flags=arrays["flags"],
        weights=arrays.get("weights"),
        starts=arrays["starts"],
        whole=arrays["whole"],
        answers=arrays["answers"].reshape(-1, 2),
        rows=arrays["rows"],
        fingerprint=fingerprint,
        meta=meta,
        dropped=dropped,
    )
    num_rows, num_tokens = len(store), int(store.starts[-1])
    sizes = (len(store.ids), len(store.flags), len(store.answers), len(store.rows))
    if sizes != (num_tokens, num_tokens, num_rows, num_rows) or (
        store.weights is not None and len(store.weights) != num_tokens
    ):
        raise ValueError("the arrays of a prepared source do not fit each other")
    return store


def _joined(parts: list[NDArray[Any]], name: str) -> NDArray[Any]:
    return np.concatenate([part.reshape(-1) for part in parts]) if parts else np.zeros(0, DTYPES[name])


def _mapped(path: Path, name: str) -> NDArray[Any]:
    if not path.exists() or path.stat().st_size == 0:
        return np.zeros(0, DTYPES[name])
    return np.memmap(path, dtype=DTYPES[name], mode="r")
