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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sftctl.engine.data.digests import digest_of_files, digest_of_text
from sftctl.engine.data.readers import READERS, Line, kind_of, lines_of_batches
from sftctl.errors import DataError, Origin, Problem

HUB_BATCH_ROWS = 1024
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """One source as the configuration says it: the fields of `data.datasets[…]`, by the same names."""

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: tuple[str, ...] | None = None
    split: str = "train"
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    fraction: float | None = None
    weight: float | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A source that is there. `lines()` reads it from the start; `fingerprint()` names its bytes."""

    label: str
    where: str
    lines: Callable[[], Iterator[Line]]
    fingerprint: Callable[[], str]


def open_source(source: Source, *, where: str, memo_dir: Path | None = None) -> OpenSource:
    """Find the files or the Hub data set of one source; raises DataError where it is not there.

    `where` is the source's place in the configuration (`data.datasets[0]`), for error texts. `memo_dir` is
    where digests of large files are remembered.
    """
    files = _local_files(source, where)
    if files is None:
        return _open_with_datasets(source, where)
    split, part = _parse_split(source, where)
    files = _files_of_split(files, split, source, where)
    _check_kinds(files, source, where)

    def lines() -> Iterator[Line]:
        rows: Iterator[Line] = (line for file in files for line in READERS[kind_of(file) or ""](file))
        if part is not None:
            rows = islice(rows, *part.bounds(sum(1 for file in files for _ in READERS[kind_of(file) or ""](file))))
        return islice(rows, source.limit)

    def fingerprint() -> str:
        return digest_of_text(digest_of_files(files, memo_dir), repr(part), repr(source.limit))

    return OpenSource(source.path, where, lines, fingerprint)


def _local_files(source: Source, where: str) -> list[Path] | None:
    """The files of a local source, sorted; None for what `datasets` has to read."""
    path = Path(source.path).expanduser()
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return None
        return _files_in_folder(path / (source.data_dir or ""), source, where)
    if path.exists():
        if kind_of(path) is None:
            raise _error(
                where, source, f"{source.path} is of no kind that can be read", help=f"one of {', '.join(READERS)}"
            )
        return [path]
    if glob.has_magic(source.path):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        found = [name for name in found if name.is_file() and kind_of(name) is not None]
        if not found:
            raise _error(where, source, f"no data file matches {source.path}")
        return found
    if source.path.startswith((".", "/", "~")) or kind_of(path) is not None:
        raise _error(where, source, f"there is no file or folder {source.path}", help=_siblings(path))
    return None


def _files_in_folder(folder: Path, source: Source, where: str) -> list[Path]:
    if source.data_files is not None:
        found = [file for pattern in source.data_files for file in sorted(folder.glob(pattern)) if file.is_file()]
        if not found:
            raise _error(
                where, source, f"no file in {folder} matches {', '.join(source.data_files)}", help=_contents(folder)
            )
        return found
    found = sorted(file for file in folder.rglob("*") if kind_of(file) and file.is_file() and not _hidden(file, folder))
    if not found:
        raise _error(where, source, f"{folder} holds no data file", help=f"a file ends in one of {', '.join(READERS)}")
    return found


def _files_of_split(files: list[Path], split: str, source: Source, where: str) -> list[Path]:
    """Of a folder whose file names say splits (train.jsonl, test-00000.parquet) those of one; else all are "train"."""
    path = Path(source.path).expanduser()
    named: dict[str, list[Path]] = {"train": files} if path.is_file() else {}
    for file in [] if path.is_file() else files:
        named.setdefault(_split_of(file.relative_to(path) if path.is_dir() else Path(file.name)), []).append(file)
    if split not in named:
        raise _error(
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
        raise _error(
            where,
            source,
            f"files of several kinds: {names}",
            help="name those to read with data_files, or use one source for each kind",
        )


@dataclass(frozen=True, slots=True)
class SplitPart:
    """The bracket of `train[10%:20]`: each bound in rows or per cent, either may be missing."""

    start: str
    stop: str

    def bounds(self, num_rows: int) -> tuple[int, int]:
        return _bound(self.start, 0, num_rows), _bound(self.stop, num_rows, num_rows)


def _parse_split(source: Source, where: str) -> tuple[str, SplitPart | None]:
    match = re.fullmatch(r"([\w.-]+)(?:\[(-?\d*%?):(-?\d*%?)\])?", source.split)
    if match is None:
        raise _error(
            f"{where}.split",
            source,
            f"{source.split!r} is no split",
            help="a name, or a slice of one such as train[:10%]",
        )
    name, start, stop = match.groups()
    return name, None if start is None else SplitPart(start, stop)


def _bound(text: str, default: int, num_rows: int) -> int:
    if text in ("", "-"):
        return default
    value = round(int(text[:-1]) * num_rows / 100) if text.endswith("%") else int(text)
    return max(0, min(num_rows, value + num_rows if value < 0 else value))


def _open_with_datasets(source: Source, where: str) -> OpenSource:
    """A Hub id or a `save_to_disk` folder."""
    import datasets  # heavy: about a second, and only for what the readers cannot read

    folder = Path(source.path).expanduser()
    try:
        if folder.is_dir():
            data = datasets.load_from_disk(str(folder))
            if isinstance(data, datasets.DatasetDict):
                data = _one_split(data, source, where)
        else:
            files = list(source.data_files) if source.data_files is not None else None
            data = datasets.load_dataset(
                source.path, source.name, data_dir=source.data_dir, data_files=files, split=source.split
            )
    except DataError:
        raise
    except Exception as error:  # the library raises a dozen kinds, from OSError to ValueError
        raise _hub_error(error, source, where) from error

    def lines() -> Iterator[Line]:
        batches = (batch for table in data.with_format("arrow").iter(HUB_BATCH_ROWS) for batch in table.to_batches())
        return islice(lines_of_batches(source.path, batches), source.limit)

    fingerprint = digest_of_text(str(data._fingerprint), str(len(data)), repr(source.limit))
    return OpenSource(source.path, where, lines, lambda: fingerprint)


def _one_split(data: Any, source: Source, where: str) -> Any:
    split, part = _parse_split(source, where)
    if split not in data:
        raise _error(
            f"{where}.split", source, f"{source.path} has no split {split!r}", help=f"it has {', '.join(sorted(data))}"
        )
    chosen = data[split]
    return chosen if part is None else chosen.select(range(*part.bounds(len(chosen))))


def _hub_error(error: Exception, source: Source, where: str) -> DataError:
    reason = " ".join(str(error).split())
    if "Unknown split" in reason:
        available = re.search(r"Should be one of \[(.*?)\]", reason)
        names = available.group(1).replace("'", "") if available else "others"
        return _error(f"{where}.split", source, f"{source.path} has no split {source.split!r}", help=f"it has {names}")
    return _error(
        where,
        source,
        f"{source.path} is no local file, and as a Hub data set it could not be loaded: {reason[:300]}",
        help="check the spelling; a gated or private data set needs `hf auth login`",
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


def _error(where: str, source: Source, message: str, help: str | None = None) -> DataError:
    return DataError(Problem(where, message, Origin("data", source.path), help))
