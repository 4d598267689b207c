"""Streams: the rows of the whole data set, window by window, from anywhere, to the bit."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftctl.engine.data import hub, stream
from sftctl.engine.data.collate import collate
from sftctl.engine.data.origin import OpenSource, Place, Source
from sftctl.engine.data.packing import one_each, pack
from sftctl.engine.data.prepare import prepare
from sftctl.engine.data.sources import open_source
from sftctl.engine.data.stream import Stream, Window, open_stream
from sftctl.errors import DataError
from tests.engine.data.conftest import chat_tokenizer

TOKENIZER = chat_tokenizer("byte_level", "chatml")
SETTINGS: dict[str, Any] = {
    "max_length": 64,
    "truncation_mode": "keep_start",
    "completion_only_loss": None,
    "assistant_only_loss": False,
    "last_turn_only_loss": False,
    "dataset_text_field": "text",
    "mixing": "concat",
    "stopping_strategy": "first_exhausted",
    "seed": 3,
    "dataset_num_proc": None,
    "on_bad_row": "error",
    "on_mask_problem": "error",
}
BATCHES = {"batch_size": 2, "accumulation": 1, "world_size": 2}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and chunks of few rows, so that few rows are many."""
    monkeypatch.setattr(stream, "WINDOW_ROWS", 10)
    monkeypatch.setattr("sftctl.engine.data.pipeline.CHUNK_ROWS", 4)


def rows(count: int, word: str = "row") -> list[dict[str, str]]:
    return [{"prompt": f"{word} {number} ", "completion": "is " + "x" * (number * 7 % 23)} for number in range(count)]


def opened(
    *sources: Source, lay: Any = one_each, batches: dict[str, int] = BATCHES, shuffle: bool = True, **changes: Any
) -> Stream:
    plan = {"lay": lay, "batches": batches, "shuffle": shuffle, "end_step": 10**9}
    return open_stream(sources, tokenizer=TOKENIZER, **{**SETTINGS, **changes}, **plan)


def windows(found: Stream, passes: int = 1) -> list[Window]:
    """All windows of some passes."""
    made = [found.window]
    while not (made[-1].ends_pass and made[-1].state["passes"] == passes - 1):
        made.append(found.window_at(made[-1].end_step))
    return made


def samples(made: list[Window]) -> list[tuple[int, ...]]:
    """Ids and labels of all rows, in the order they were read."""
    return [
        tuple(np.concatenate([sample.input_ids, sample.labels]).tolist())
        for window in made
        for sample in (window.rows.sample(index) for index in range(len(window.rows)))
    ]


def whole(*sources: Source, **changes: Any) -> Any:
    return prepare(sources, tokenizer=TOKENIZER, **{**SETTINGS, **changes})


def trained(window: Window) -> list[Any]:
    """Every batch of a window, to be compared."""
    plan, found = window.plan, []
    for step in range(plan.num_steps):
        for rank in range(plan.world_size):
            for chosen in plan.micro_batches(step, rank):
                batch = collate(window.rows, plan.bins, chosen, padding_free=True, pad_token_id=0)
                found.append((batch.input_ids.tobytes(), batch.labels.tobytes(), batch.cu_seqlens.tobytes()))
    return found


# ---------------------------------------------------------------------- what comes, and in which order


@pytest.mark.parametrize(
    "mixing",
    [
        {"mixing": "concat"},
        {"mixing": "interleave"},
        {"mixing": "interleave", "stopping_strategy": "all_exhausted"},
    ],
    ids=str,
)
def test_a_pass_over_a_stream_is_the_whole_data_set_in_its_order(
    write_rows: Callable[..., str], mixing: dict[str, Any]
) -> None:
    sources = (Source(write_rows(rows(33), "a.jsonl")), Source(write_rows(rows(21, "other"), "b.jsonl"), weight=0.4))
    prepared = whole(*sources, **mixing)
    made = windows(opened(*sources, **mixing))
    expected = [prepared.sample(index) for index in range(len(prepared))]
    assert samples(made) == [tuple(np.concatenate([s.input_ids, s.labels]).tolist()) for s in expected]


def test_windows_end_with_whole_batches(write_rows: Callable[..., str]) -> None:
    """And what does not fill one begins the next window; the last of a pass is as it is."""
    found = opened(Source(write_rows(rows(47))))
    made = windows(found, passes=2)
    assert [(len(window.rows), window.plan.num_steps, window.ends_pass) for window in made[:6]] == [
        *[(8, 2, False)] * 5,
        (7, 2, True),
    ]
    assert [window.first_step for window in made] == list(range(0, 24, 2))
    assert samples(made[:6]) == samples(made[6:])
    assert trained(made[0]) != trained(made[6]), "each pass shuffles anew"


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packed_windows_lose_no_row(write_rows: Callable[..., str], strategy: str) -> None:
    lay = partial(pack, max_length=40, strategy=strategy)
    changes = {"max_length": 40 if strategy == "bfd" else None}
    path = Source(write_rows(rows(70)))
    made = windows(opened(path, lay=lay, **changes))
    assert len(made) > 3
    assert len(samples(made)) == 70
    for window in made[:-1]:
        assert 1 <= len(window.plan.bins) <= window.plan.num_steps * 4
        if strategy == "bfd":
            assert len(window.plan.bins) % 4 == 0


def test_a_window_is_read_on_until_it_fills_a_batch(write_rows: Callable[..., str]) -> None:
    found = opened(Source(write_rows(rows(90))), batches={"batch_size": 32, "accumulation": 1, "world_size": 1})
    assert [len(window.rows) for window in windows(found)] == [32, 32, 26]


def test_the_books_of_all_windows_are_those_of_the_whole(write_rows: Callable[..., str]) -> None:
    """Rows that fall out between, before and after windows too, each counted once."""
    bad = [{"prompt": 1, "completion": "x"}, {"prompt": "q" * 90, "completion": "cut away"}]
    mixed = [row for pair in zip(rows(31), bad * 16, strict=False) for row in pair]
    source = Source(write_rows([*bad * 3, *mixed, *bad]))
    expected = whole(source, on_bad_row="skip").ledger
    made = windows(opened(source, on_bad_row="skip"))
    ledger = made[-1].ledger.sources[0].as_data()
    assert ledger == expected.sources[0].as_data() | {"rows_used": 31}
    dropped = [row for window in made for row in window.dropped]
    assert dropped == list(expected.dropped())
    assert made[-1].following["dropped"] == len(dropped) == expected.rows_dropped


def test_the_proof_is_of_the_first_window_and_of_the_first_rows_of_every_source(write_rows: Callable[..., str]) -> None:
    sources = [Source(write_rows(rows(40), "a.jsonl")), Source(write_rows(rows(9, "b"), "b.jsonl"))]
    proof = opened(*sources).proof
    assert [source.rows for source in proof.sources] == [8, 4]
    assert all(source.rows_stop_trained for source in proof.sources)
    long = Source(write_rows([{"prompt": "p" * 40, "completion": "c" * 90}] * 40, "c.jsonl"))
    with pytest.raises(DataError, match="truncation cuts"):
        opened(sources[0], long)
    assert opened(sources[0], long, on_mask_problem="warn").proof.violations


# ---------------------------------------------------------------------- going on


@pytest.mark.parametrize("mixing", ["concat", "interleave", "all_exhausted"])
@given(data=st.data())
@settings(deadline=None, max_examples=15)
def test_a_resumed_stream_is_the_one_that_was_never_stopped(
    tmp_path_factory: pytest.TempPathFactory, mixing: str, data: st.DataObject
) -> None:
    """From any window of any pass, packed or not, with rows that fall out: the same batches to the bit, the same
    books, the same state; a number of ranks that changes in between changes no global batch."""
    folder = tmp_path_factory.mktemp("rows")
    sources = []
    for name in "ab":
        count = data.draw(st.integers(1, 40))
        made: list[Any] = rows(count, name)
        for place in data.draw(st.lists(st.integers(0, count), max_size=3)):
            made.insert(place, {"prompt": 7, "completion": "x"})
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
        sources.append(Source(str(path), weight=data.draw(st.floats(0.2, 2))))
    way = (
        {"mixing": "interleave", "stopping_strategy": "all_exhausted"}
        if mixing == "all_exhausted"
        else {"mixing": mixing}
    )
    lay = data.draw(st.sampled_from([one_each, partial(pack, max_length=64, strategy="bfd")]))
    never_stopped = windows(opened(*sources, lay=lay, on_bad_row="skip", **way), passes=2)
    number = data.draw(st.integers(0, len(never_stopped) - 1))
    other = {"batch_size": 4, "accumulation": 1, "world_size": 1}
    resumed = opened(*sources, lay=lay, on_bad_row="skip", batches=other, **way)
    resumed.restore(json.loads(json.dumps(never_stopped[number].state)))
    for expected in never_stopped[number : number + 3]:
        window = resumed.window_at(expected.first_step)
        assert json.dumps(window.state) == json.dumps(expected.state)
        assert window.plan.global_digest == expected.plan.global_digest
        assert window.ledger == expected.ledger
        assert window.dropped == expected.dropped


def test_what_was_read_ahead_is_forgotten_by_a_resume(write_rows: Callable[..., str]) -> None:
    """Also while the thread that prepares the next window is at work."""
    source = Source(write_rows(rows(60)))
    expected = [trained(window) for window in windows(opened(source))]
    found = opened(source)
    first = found.window.state
    found.window_at(3)  # and the next one is being prepared
    found.restore(first)
    assert [trained(window) for window in windows(found)] == expected


def test_a_resume_reads_nothing_before_its_place(
    write_rows: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """O(1): a window in the middle of a long file costs a window."""
    path = write_rows(rows(4000))
    far = opened(Source(path))
    state = {**far.window.following, "fingerprint": None}
    for _ in range(300):
        state = far.window_at(far.window.end_step).state
    resumed = opened(Source(path))
    read: list[Any] = []
    loads = json.loads
    monkeypatch.setattr("sftctl.engine.data.readers.json.loads", lambda raw: read.append(raw) or loads(raw))
    resumed.restore(state)
    assert len(read) < 40
    assert loads(read[0])["prompt"] == f"row {state['places'][0][0]} "


def test_other_rows_at_the_place_of_a_resume_are_refused(write_rows: Callable[..., str]) -> None:
    found = opened(Source(write_rows(rows(60))))
    state = found.window_at(6).state
    path = write_rows([{**row, "prompt": row["prompt"].replace("row", "low")} for row in rows(60)])
    with pytest.raises(DataError, match=r"does not give the rows that it gave before, at row 25 of .*rows\.jsonl"):
        opened(Source(path)).restore(state)


def test_the_fingerprint_sees_the_sizes_and_the_ends_of_files(write_rows: Callable[..., str]) -> None:
    before = opened(Source(write_rows(rows(60)))).fingerprint
    assert opened(Source(write_rows(rows(60)))).fingerprint == before
    assert opened(Source(write_rows(rows(61)))).fingerprint != before
    assert opened(Source(write_rows(rows(60))), max_length=63).fingerprint != before


# ---------------------------------------------------------------------- kinds of files


def _files(folder: Path, count: int) -> Iterator[tuple[str, Source]]:
    made = rows(count)
    lines = [json.dumps(row) for row in made]
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n\n".join(lines).encode())
    with gzip.open(folder / "b.jsonl.gz", "wt") as zipped:
        zipped.write("\n".join(lines))
    (folder / "c.json").write_text(json.dumps(made, indent=1))
    quoted = "\n".join(f'"{row["prompt"]}\nnext","{row["completion"]}"\n' for row in made)
    (folder / "d.csv").write_text(f"prompt,completion\n{quoted}")
    (folder / "e.tsv").write_text("prompt\tcompletion\n" + "".join(f"{r['prompt']}\t{r['completion']}\n" for r in made))
    table = pa.Table.from_pylist(made)
    pyarrow.parquet.write_table(table, folder / "f.parquet", row_group_size=7)
    with pa.OSFile(str(folder / "g.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=6)
    with pa.OSFile(str(folder / "h.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=6)
    datasets.Dataset.from_list(made).save_to_disk(str(folder / "saved"))
    parts = folder / "parts"
    parts.mkdir()
    for number in range(3):
        (parts / f"{number}.jsonl").write_text("".join(line + "\n" for line in lines[number::3]))
    for path in (*sorted(folder.glob("*.*")), folder / "saved", parts):
        yield path.name, Source(str(path))
        yield f"{path.name}, 20 rows", Source(str(path), limit=20)
    yield "glob", Source(str(parts / "*.jsonl"))


def test_every_kind_of_file_goes_on_from_any_row(tmp_path: Path) -> None:
    """`walk` from the place after row k gives rows k + 1, …, with their files and lines."""
    kinds = dict(_files(tmp_path, 31))
    assert len(kinds) == 21
    for name, source in kinds.items():
        _goes_on(open_source(source, where="data.datasets[0]", streaming=True), 20 if "20 rows" in name else 31)


def _goes_on(source: OpenSource, count: int) -> None:
    walked = list(source.walk(Place()))
    assert len(walked) == count, source.label
    assert [place.row for _, place in walked] == list(range(1, count + 1))
    assert [line._replace(after=0) for line, _ in walked] == [line._replace(after=0) for line in source.lines()]
    for number, (_, place) in enumerate(walked, start=1):
        again = Place(*json.loads(json.dumps(place)))
        assert [line for line, _ in source.walk(again)] == [line for line, _ in walked[number:]], source.label


def test_a_stream_of_datasets_goes_on_from_any_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An IterableDataset, as a Hub id gives one: here over local Parquet files, since there is no Hub in a test."""
    monkeypatch.setattr(hub, "HUB_BATCH_ROWS", 8)
    for number in range(2):
        table = pa.Table.from_pylist(rows(17, f"part {number}"))
        pyarrow.parquet.write_table(table, tmp_path / f"{number}.parquet", row_group_size=5)
    files = sorted(str(path) for path in tmp_path.glob("*.parquet"))
    for source, count in ((Source("org/name"), 34), (Source("org/name", limit=20), 20)):
        where = {"data_files": files, "split": "train", "cache_dir": str(tmp_path)}
        data = datasets.load_dataset("parquet", streaming=True, **where)
        _goes_on(hub.open_stream(source, "data.datasets[0]", data), count)


# ---------------------------------------------------------------------- what is refused


def test_what_a_stream_refuses(write_rows: Callable[..., str]) -> None:
    path = write_rows(rows(9))
    with pytest.raises(DataError, match=r"train\[:5\] is a slice, and a stream has no known length"):
        opened(Source(path, split="train[:5]"))
    with pytest.raises(DataError, match="the source is empty"):
        opened(Source(path), Source(write_rows([], "empty.jsonl")))
    with pytest.raises(DataError, match=r"none of its 3 rows can be trained on \(3 bad_row\)"):
        opened(Source(write_rows([{"prompt": 1, "completion": 2}] * 3, "bad.jsonl")), on_bad_row="skip")
    with pytest.raises(DataError, match="it has no fraction"):
        opened(Source(path, fraction=0.5), Source(path))


def test_a_source_without_a_good_row_is_not_read_to_its_end(
    write_rows: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sftctl.engine.data.ahead.MAX_ROWS_IN_VAIN", 100)
    with pytest.raises(DataError, match=r"none of its 10\d rows can be trained on"):
        opened(Source(write_rows([{"prompt": 1, "completion": 2}] * 1000)), on_bad_row="skip")


def test_a_bad_row_far_in_a_stream_is_named_when_it_comes(write_rows: Callable[..., str]) -> None:
    found = opened(Source(write_rows([*rows(40), {"prompt": 1, "completion": "x"}])))
    with pytest.raises(DataError) as error:
        windows(found)
    assert error.value.problems[0].origin.line == 41


def test_processes_stream_the_same_to_the_bit(write_rows: Callable[..., str]) -> None:
    source = Source(write_rows(rows(30)))
    assert samples(windows(opened(source, dataset_num_proc=2))) == samples(windows(opened(source)))
