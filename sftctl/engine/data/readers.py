"""One reader for each kind of local file: bytes in, `Line`s out, broken ones among them.

    reader(path)                   every row
    reader(path, start, line)      the rows after one whose `after` is `start` and whose `line` is `line`

Properties: a reader never raises for a bad row. A line that is not JSON, a record with a field too many,
text that is not UTF-8 come out as a `Line` with `error`, its file and its line, and the next one is read;
what to do about it is the caller's rule (`on_bad_row`). Nothing is read twice and only one chunk is held.

Trade-off, measured on the 7,473 rows of GSM8K (4.4 MB): a plain loop over lines with `json` takes 0.03 s,
`pyarrow.json` 0.02 s, `import datasets` alone 0.8 s to several seconds; pyarrow reports a broken line by the
byte offset of its block, and makes one type of all rows (so a row with one more key changes all others).
Lines are therefore read by hand, column files by pyarrow, and `datasets` is left for what only it can read.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

ARROW_BATCH_ROWS = 1024
MAX_FIELD = 2**31 - 1
"""Characters of a CSV field; the library's own limit is 131,072."""
NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""What bytes that are not UTF-8 become under "surrogateescape"."""


class Line(NamedTuple):
    """One row as it was read. `line` counts from 1 in a text file; `value` is None where `error` says why.

    `after` is where the next row begins: a byte of a file of lines, the number of a row of any other.
    """

    file: str
    line: int | None
    value: dict[str, Any] | None
    error: str | None = None
    after: int = 0


def read_json(path: Path, start: int = 0, line: int = 0) -> Iterator[Line]:
    """One array of objects, or JSON lines: the first character decides, unless the name says that it is of lines."""
    with _open(path) as stream:
        head = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        whole = head.startswith(b"[") or (head.startswith(b"{") and _is_one_object(head))
        if whole and kind_of(path) == ".json":
            stream.seek(0)
            yield from islice(_read_json_whole(path, stream), start, None)
        else:
            stream.seek(start)
            yield from _read_json_lines(path, stream, start, line)


def read_csv(path: Path, start: int = 0, line: int = 0, *, delimiter: str = ",") -> Iterator[Line]:
    """Comma-separated values with a header line. Every value is text. Empty lines are no rows.

    A record is read to its end before it is judged: bytes that are not UTF-8 spoil it, and not what comes after.
    """
    csv.field_size_limit(MAX_FIELD)
    file = str(path)
    with _open(path) as raw:
        text = _TextLines(raw)
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            try:
                fields = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield Line(file, text.line, None, f"not CSV: {error}", text.after)
                continue
            if any(NOT_UTF8.search(field) for field in fields):
                yield Line(file, text.line, None, "not UTF-8", text.after)
                if header is None:  # no line after it could be told from a header
                    return
            elif header is None:
                header = fields
                text.skip_to(start, line)
            elif fields and len(fields) != len(header):
                what = f"{len(fields)} fields where the header has {len(header)}"
                yield Line(file, text.line, None, what, text.after)
            elif fields:
                yield Line(file, text.line, dict(zip(header, fields, strict=True)), None, text.after)


def read_tsv(path: Path, start: int = 0, line: int = 0) -> Iterator[Line]:
    return read_csv(path, start, line, delimiter="\t")


def read_parquet(path: Path, start: int = 0, line: int = 0) -> Iterator[Line]:
    """A Parquet file, a batch of rows at a time. Row groups before `start` are not read."""
    import pyarrow.parquet as parquet  # heavy: 0.2 s, and only for column files

    with parquet.ParquetFile(path) as table:
        first, before = 0, 0
        while first < table.num_row_groups and before + table.metadata.row_group(first).num_rows <= start:
            before += table.metadata.row_group(first).num_rows
            first += 1
        groups = list(range(first, table.num_row_groups))
        batches = table.iter_batches(batch_size=ARROW_BATCH_ROWS, row_groups=groups) if groups else iter(())
        yield from lines_of_batches(str(path), batches, start=start, before=before)


def read_arrow(path: Path, start: int = 0, line: int = 0) -> Iterator[Line]:
    """An Arrow IPC file or stream, memory-mapped: batches before `start` are passed over unread."""
    import pyarrow as pa  # heavy, see above

    with pa.memory_map(str(path)) as stream:
        try:
            reader = pa.ipc.open_file(stream)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            batches = iter(pa.ipc.open_stream(stream))
        yield from lines_of_batches(str(path), batches, start=start)


def lines_of_batches(file: str, batches: Iterator[Any], *, start: int = 0, before: int = 0) -> Iterator[Line]:
    """Rows of Arrow record batches as plain Python, from row `start` on; `before` rows precede the batches.

    A struct column gives every row every key of any row, null where the row has none; those nulls are taken
    out again, or a template would see a `tool_calls` that nobody wrote.
    """
    number = before
    for batch in batches:
        skipped = min(batch.num_rows, max(0, start - number))
        number += skipped
        for begin in range(skipped, batch.num_rows, ARROW_BATCH_ROWS):
            for value in _values(batch.slice(begin, ARROW_BATCH_ROWS)):
                number += 1
                if isinstance(value, str):
                    yield Line(file, None, None, value, number)
                else:
                    yield Line(file, None, {key: without_nulls(item) for key, item in value.items()}, None, number)


def _values(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch; of one that Python cannot hold, as a date in the year 300,000, the reason."""
    try:
        yield from batch.to_pylist()
        return
    except (OverflowError, ValueError):
        pass
    for place in range(batch.num_rows):
        try:
            yield batch.slice(place, 1).to_pylist()[0]
        except (OverflowError, ValueError) as error:
            yield f"a value that cannot be read: {error}"


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value] if value and isinstance(value[0], (dict, list)) else value
    return value


Reader = Callable[[Path, int, int], Iterator[Line]]
READERS: dict[str, Reader] = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
OF_TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
"""Kinds that may be compressed by gzip."""


def kind_of(path: Path) -> str | None:
    """The suffix that decides the reader, without `.gz`; None where no reader fits."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes[-1:] == [".gz"]:
        return suffixes[0] if suffixes[0] in OF_TEXT else None
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]  # GzipFile is one in all but name


def _is_one_object(head: bytes) -> bool:
    """Whether the first line is only the beginning of an object, as in a pretty-printed file."""
    first_line = head.split(b"\n", 1)[0].strip()
    return first_line == b"{"


def _read_json_whole(path: Path, stream: IO[bytes]) -> Iterator[Line]:
    file = str(path)
    try:
        value = json.loads(stream.read().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        yield Line(file, error.lineno, None, f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}", 1)
        return
    except UnicodeDecodeError as error:
        yield Line(file, None, None, f"not UTF-8: {error.reason} at byte {error.start}", 1)
        return
    except (ValueError, RecursionError) as error:  # as for lines, below
        yield Line(file, None, None, f"not JSON that can be read: {error}", 1)
        return
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        yield _line_of(file, None, row, number)


def _read_json_lines(path: Path, stream: IO[bytes], after: int, line: int) -> Iterator[Line]:
    file = str(path)
    for number, raw in enumerate(stream, start=line + 1):
        after += len(raw)
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.isspace():
            continue
        try:
            value = json.loads(raw)
        except json.JSONDecodeError as error:
            yield Line(file, number, None, f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}", after)
        except UnicodeDecodeError as error:
            yield Line(file, number, None, f"not UTF-8: {error.reason} at byte {error.start} of the line", after)
        except (ValueError, RecursionError) as error:  # a number of too many digits, a list in a list in a list …
            yield Line(file, number, None, f"not JSON that can be read: {error}", after)
        else:
            yield _line_of(file, number, value, after)


def _line_of(file: str, number: int | None, value: Any, after: int) -> Line:
    if isinstance(value, dict):
        return Line(file, number, value, None, after)
    return Line(file, number, None, f"a row is an object with named columns, and this is {_kind(value)}", after)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


class _TextLines:
    """The lines of a file as text, one by one, and where it stands. What is not UTF-8 becomes NOT_UTF8."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.line = self.after = 0

    def skip_to(self, after: int, line: int) -> None:
        """Go on at byte `after`, where that is further on."""
        if after > self.after:
            self._stream.seek(after)
            self.after, self.line = after, line

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = self._stream.readline()
        if not raw:
            raise StopIteration
        first = not self.after
        self.after += len(raw)
        self.line += 1
        return raw.decode("utf-8-sig" if first else "utf-8", "surrogateescape")
