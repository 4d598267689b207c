"""Sources that `datasets` reads: Hub ids, whole or as a stream, and `save_to_disk` folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

from sftctl.engine.data.digests import digest_of_ends, digest_of_files, digest_of_text
from sftctl.engine.data.origin import OpenSource, Place, Source, parse_split, refusal
from sftctl.engine.data.readers import Line, lines_of_batches, without_nulls
from sftctl.errors import DataError

HUB_BATCH_ROWS = 1024


def open_with_datasets(
    source: Source, where: str, *, memo_dir: Path | None = None, streaming: bool = False
) -> OpenSource:
    """A Hub id or a `save_to_disk` folder. A folder is memory-mapped, so that it can be read from any row.

    A folder is known by the bytes of its files (`datasets` only reads the name it was given when it was saved), in a
    stream by their sizes and ends; a Hub data set by the fingerprint of `datasets`.
    """
    import datasets  # heavy: about a second, and only for what the readers cannot read

    folder = Path(source.path).expanduser()
    try:
        if folder.is_dir():
            data = datasets.load_from_disk(str(folder))
            data = _one_split(data if isinstance(data, datasets.DatasetDict) else _named(data), source, where)
        else:
            files = list(source.data_files) if source.data_files is not None else None
            data = datasets.load_dataset(
                source.path,
                source.name,
                data_dir=source.data_dir,
                data_files=files,
                split=source.split,
                streaming=streaming,
            )
            if streaming:
                return open_stream(source, where, data)
    except DataError:
        raise
    except Exception as error:  # the library raises a dozen kinds, from OSError to ValueError
        raise _hub_error(error, source, where) from error

    def fingerprint() -> str:
        if not folder.is_dir():
            return digest_of_text(str(data._fingerprint), str(len(data)), repr(source.limit))
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        bytes_of = digest_of_ends(files) if streaming else digest_of_files(files, memo_dir)
        return digest_of_text(bytes_of, source.split, repr(source.limit))

    def walk(place: Place) -> Iterator[tuple[Line, Place]]:
        end = len(data) if source.limit is None else min(source.limit, len(data))
        if place.row < end:
            for line in _rows(source, data.select(range(place.row, end)), place.row):
                yield line, Place(line.after, 0, line.after)

    def lines() -> Iterator[Line]:
        return islice(_rows(source, data, 0), source.limit)

    return OpenSource(source.path, where, lines, fingerprint, walk)


def _named(data: Any) -> dict[str, Any]:
    """A data set that was saved alone: it is "train", as a file alone is, and what it says it is."""
    return {str(data.split or "train"): data, "train": data}


def _rows(source: Source, data: Any, before: int) -> Iterator[Line]:
    batches = (batch for table in data.with_format("arrow").iter(HUB_BATCH_ROWS) for batch in table.to_batches())
    return lines_of_batches(source.path, batches, start=before, before=before)


def open_stream(source: Source, where: str, data: Any) -> OpenSource:
    """An `IterableDataset`. It says where it stands once in HUB_BATCH_ROWS rows, which costs it a copy of its state."""
    begin = deepcopy(data.state_dict())

    def walk(place: Place) -> Iterator[tuple[Line, Place]]:
        state, skipped = place.offset or (begin, 0)
        data.load_state_dict(deepcopy(state))  # which it goes on to change
        row, within = place.row, 0
        for value in data:
            within += 1
            if within > skipped:
                if row == source.limit:
                    return
                row += 1
                yield Line(source.path, None, without_nulls(value)), Place(row, 0, (state, within))
            if within == HUB_BATCH_ROWS:
                state, within, skipped = deepcopy(data.state_dict()), 0, 0

    def lines() -> Iterator[Line]:
        return (line for line, _ in walk(Place()))

    facts = (source.path, source.name, source.data_dir, source.data_files, source.split, source.limit)
    fingerprint = digest_of_text(repr(facts), str(data.info.version), str(data.info.download_checksums))
    return OpenSource(source.path, where, lines, lambda: fingerprint, walk)


def _one_split(data: Any, source: Source, where: str) -> Any:
    split, part = parse_split(source, where)
    if split not in data:
        raise refusal(
            f"{where}.split", source, f"{source.path} has no split {split!r}", help=f"it has {', '.join(sorted(data))}"
        )
    chosen = data[split]
    return chosen if part is None else chosen.select(range(*part.bounds(len(chosen))))


def _hub_error(error: Exception, source: Source, where: str) -> DataError:
    reason = " ".join(str(error).split())
    if "Unknown split" in reason:
        available = re.search(r"Should be one of \[(.*?)\]", reason)
        names = available.group(1).replace("'", "") if available else "others"
        return refusal(f"{where}.split", source, f"{source.path} has no split {source.split!r}", help=f"it has {names}")
    return refusal(
        where,
        source,
        f"{source.path} is no local file, and as a Hub data set it could not be loaded: {reason[:300]}",
        help="check the spelling; a gated or private data set needs `hf auth login`",
    )
