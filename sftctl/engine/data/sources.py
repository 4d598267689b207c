"""Where rows come from: local files, folders, globs, `save_to_disk` folders, Hub ids.

    Source (what the configuration says) -> open_source -> OpenSource (lines, fingerprint)

Properties: a path that exists is local; one that begins with `.`, `~` or `/`, holds a glob, or ends in a data
suffix is never taken for a Hub id. Rows come in the order of the sorted files. The fingerprint follows from
the bytes of the files, or from the Hub's own fingerprint of the data.

Trade-off: local files are read by `readers`, not by `datasets`, whose import alone costs more than preparing
GSM8K (see there); the Hub and `save_to_disk` folders go through `datasets`.
"""

from __future__ import annotations

import glob
import re
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sftctl.engine.data.digests import digest_of_ends, digest_of_files, digest_of_text
from sftctl.engine.data.hub import open_with_datasets
from sftctl.engine.data.origin import OpenSource, Place, Source, parse_split, refusal
from sftctl.engine.data.readers import READERS, Line, kind_of

UNREADABLE = (OSError, EOFError, ValueError, OverflowError, NotImplementedError, SystemError, zlib.error)
"""What gzip, pyarrow and the system raise where a file is not what it should be."""
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def open_source(source: Source, *, where: str, memo_dir: Path | None = None, streaming: bool = False) -> OpenSource:
    """Find the files or the Hub data set of one source; raises DataError where it is not there.

    `where` is the source's place in the configuration (`data.datasets[0]`), for error texts. `memo_dir` is
    where digests of large files are remembered. With `streaming` nothing is read that is not asked for: what it
    is known by then are the sizes of its files and their first and last bytes.
    """
    files = _local_files(source, where)
    if files is None:
        return open_with_datasets(source, where, memo_dir=memo_dir, streaming=streaming)
    split, part = parse_split(source, where)
    if part is not None and streaming:
        raise refusal(
            f"{where}.split", source, f"{source.split} is a slice, and a stream has no known length",
            help="read its first rows with limit, or set data.streaming = false",
        )  # fmt: skip
    files = _files_of_split(files, split, source, where)
    _check_kinds(files, source, where)

    def read(number: int, start: int = 0, line: int = 0) -> Iterator[Line]:
        try:
            yield from READERS[kind_of(files[number]) or ""](files[number], start, line)
        except UNREADABLE as error:
            reason = f"{files[number]} cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
            raise refusal(where, source, reason, help="is it whole, and what its name says it is?") from error

    def lines() -> Iterator[Line]:
        rows: Iterator[Line] = (line for number in range(len(files)) for line in read(number))
        if part is not None:
            rows = islice(rows, *part.bounds(sum(1 for number in range(len(files)) for _ in read(number))))
        return islice(rows, source.limit)

    def walk(place: Place) -> Iterator[tuple[Line, Place]]:
        row = place.row
        for number in range(place.file, len(files)):
            start, line = (place.offset, place.line) if number == place.file else (0, 0)
            for each in read(number, start, line):
                if row == source.limit:
                    return
                row += 1
                yield each, Place(row, number, each.after, each.line or 0)

    def fingerprint() -> str:
        bytes_of = digest_of_ends(files) if streaming else digest_of_files(files, memo_dir)
        return digest_of_text(bytes_of, str(kind_of(files[0])), repr(part), repr(source.limit))

    return OpenSource(source.path, where, lines, fingerprint, walk)


def _local_files(source: Source, where: str) -> list[Path] | None:
    """The files of a local source, sorted; None for what `datasets` has to read."""
    path = Path(source.path).expanduser()
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return None
        return _files_in_folder(path / (source.data_dir or ""), source, where)
    if path.exists():
        if kind_of(path) is None:
            raise refusal(
                where, source, f"{source.path} is of no kind that can be read", help=f"one of {', '.join(READERS)}"
            )
        return [path]
    if glob.has_magic(source.path):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        found = [name for name in found if name.is_file() and kind_of(name) is not None]
        if not found:
            raise refusal(where, source, f"no data file matches {source.path}")
        return found
    if source.path.startswith((".", "/", "~")) or kind_of(path) is not None:
        raise refusal(where, source, f"there is no file or folder {source.path}", help=_siblings(path))
    return None


def _files_in_folder(folder: Path, source: Source, where: str) -> list[Path]:
    if source.data_files is not None:
        found = [file for pattern in source.data_files for file in sorted(folder.glob(pattern)) if file.is_file()]
        if not found:
            raise refusal(
                where, source, f"no file in {folder} matches {', '.join(source.data_files)}", help=_contents(folder)
            )
        return found
    found = sorted(file for file in folder.rglob("*") if kind_of(file) and file.is_file() and not _hidden(file, folder))
    if not found:
        raise refusal(where, source, f"{folder} holds no data file", help=f"a file ends in one of {', '.join(READERS)}")
    return found


def _files_of_split(files: list[Path], split: str, source: Source, where: str) -> list[Path]:
    """Of a folder whose file names say splits (train.jsonl, test-00000.parquet) those of one; else all are "train"."""
    path = Path(source.path).expanduser()
    named: dict[str, list[Path]] = {"train": files} if path.is_file() else {}
    for file in [] if path.is_file() else files:
        named.setdefault(_split_of(file.relative_to(path) if path.is_dir() else Path(file.name)), []).append(file)
    if split not in named:
        raise refusal(
            f"{where}.split", source, f"{source.path} has no split {split!r}", help=f"it has {', '.join(sorted(named))}"
        )
    return named[split]


def _split_of(file: Path) -> str:
    """The split that a file's name says, else the folders it lies in inside the source, else "train"."""
    for part in reversed(file.parts):
        words = set(re.split(r"[^a-z]+", part.lower()))
        for split, spellings in SPLIT_WORDS.items():
            if words & set(spellings):
                return split
    return "train"


def _check_kinds(files: list[Path], source: Source, where: str) -> None:
    kinds = {kind_of(file) for file in files}
    if len(kinds) > 1:
        names = ", ".join(sorted(str(kind) for kind in kinds))
        raise refusal(
            where,
            source,
            f"files of several kinds: {names}",
            help="name those to read with data_files, or use one source for each kind",
        )


def _siblings(path: Path) -> str | None:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} is not there either"
    names = sorted(file.name for file in folder.iterdir() if kind_of(file))[:5]
    return f"{folder} has {', '.join(names)}" if names else None


def _contents(folder: Path) -> str | None:
    if not folder.is_dir():
        return "the folder is not there"
    names = sorted(file.name for file in folder.iterdir())[:8]
    return f"it has {', '.join(names)}" if names else "it is empty"


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
