"""What nobody meant to write: rows, files, folders and settings at the edge of what can be read.

Each is one clear error, or under `on_bad_row = "skip"` one row in the book; none is trained as something else.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sftctl.config.report import lines as report_lines
from sftctl.engine.data import cache
from sftctl.engine.data.mixing import interleave, shares
from sftctl.engine.data.prepare import Prepared, Source, prepare
from sftctl.engine.data.readers import READERS, kind_of
from sftctl.engine.data.sources import open_source
from sftctl.engine.data.stats import data_stats
from sftctl.engine.data.templates import ChatTemplate
from sftctl.engine.model.tokenizer import byte_tokenizer
from sftctl.errors import DataError, Origin, Problem

WHERE = "data.datasets[0]"
GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def run(path: str, folder: Path | None = None, **settings: Any) -> Prepared:
    return prepare((Source(path),), tokenizer=byte_tokenizer(), cache_dir=folder, **settings)


def refusal(path: str, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        run(path, **settings)
    return str(error.value)


# ------------------------------------------------------------------ token ids


@pytest.mark.parametrize(
    ("mask", "settings"),
    [("assistant_masks", {"assistant_only_loss": True}), ("completion_mask", {"completion_only_loss": True})],
)
def test_a_row_of_ids_without_the_mask_that_others_have_is_a_bad_row(
    write_rows: Callable[..., str], mask: str, settings: dict[str, bool]
) -> None:
    ids = [65, 66, 67, 258]
    masked, bare = {"input_ids": ids, mask: [0, 0, 1, 1]}, {"input_ids": ids}
    assert f"it has no {mask}, and the first row has: all of it would train" in refusal(
        write_rows([masked, bare]), **settings
    )
    skipped = run(write_rows([masked, bare, masked]), on_bad_row="skip", **settings)
    assert [row.row for row in skipped.ledger.dropped()] == [2]
    assert f"it has {mask}, and the first row has none" in refusal(write_rows([bare, masked]))
    assert mask in refusal(write_rows([{"input_ids": ids, mask: None}, masked]), **settings)


def test_padding_that_an_attention_mask_names_is_left_out(write_rows: Callable[..., str]) -> None:
    padded = {
        "input_ids": [259, 65, 66, 258, 259],
        "attention_mask": [0, 1, 1, 1, 0],
        "labels": [-100, 65, 66, 258, -100],
    }
    prepared = run(write_rows([padded]))
    assert prepared.sample(0).input_ids.tolist() == [65, 66, 258]
    assert prepared.sample(0).labels.tolist() == [-100, 66, 258]
    holes = {"input_ids": [65, 66, 258], "attention_mask": [1, 0, 1]}
    assert "attention_mask[1] is 0 between tokens that are seen" in refusal(write_rows([holes]))


def test_the_end_of_a_prompt_is_not_the_completion_s(write_rows: Callable[..., str]) -> None:
    rows = [{"prompt": "Q<|im_end|>", "completion": ""}, {"prompt": "Q", "completion": "A"}]
    prepared = run(write_rows(rows))
    assert [(row.row, row.kind) for row in prepared.ledger.dropped()] == [(1, "nothing_to_train")]


# ------------------------------------------------------------------ what a row holds


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "conversations[0].from is text"),
        ({**GOOD, "tools": "[" * 100_000}, "tools is JSON text that cannot be read"),
        ({**GOOD, "tools": "[" + "9" * 5000 + "]"}, "tools is JSON text that cannot be read"),
    ],
    ids=["from", "deep tools", "long tools"],
)
def test_odd_values_are_bad_rows(write_rows: Callable[..., str], row: dict[str, Any], reason: str) -> None:
    good = (
        GOOD
        if "messages" in row
        else {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    )
    assert reason in refusal(write_rows([good, row]))
    dropped = list(run(write_rows([good, row]), on_bad_row="skip").ledger.dropped())
    assert [each.row for each in dropped] == [2]
    assert reason in dropped[0].reason


def test_half_a_character_can_be_written_into_the_book(write_rows: Callable[..., str], tmp_path: Path) -> None:
    path = write_rows([GOOD, {"messages": [{"role": "\ud800", "content": 1}]}])
    prepared = run(path, tmp_path / "cache", on_bad_row="skip")
    assert [row.row for row in prepared.ledger.dropped()] == [2]


def test_a_date_beyond_python_s_spoils_its_row_alone(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    stamps = pa.array([0, 2**60, 1], type=pa.timestamp("ms"))
    parquet.write_table(pa.table({"text": ["a", "b", "c"], "at": stamps}), tmp_path / "rows.parquet")
    read = list(READERS[".parquet"](tmp_path / "rows.parquet", 0, 0))
    assert [line.value and line.value["text"] for line in read] == ["a", None, "c"]
    assert "a value that cannot be read" in (read[1].error or "")


# ------------------------------------------------------------------ the first row


@pytest.mark.parametrize("first", ["[1,2", "{", "{}", '{"foo": 1}', "[]"])
def test_a_first_line_that_is_no_row_costs_no_other(tmp_path: Path, first: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{first}\n{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n")
    prepared = run(str(path), on_bad_row="skip")
    assert len(prepared) == 2
    assert [(row.line, row.kind) for row in prepared.ledger.dropped()] == [(1, "bad_row")]
    refusal(str(path))


def test_rows_of_no_known_format_are_one_error(write_rows: Callable[..., str]) -> None:
    assert "foo" in refusal(write_rows([{"foo": 1}, {"foo": 2}]), on_bad_row="skip")


# ------------------------------------------------------------------ CSV


def test_a_csv_record_is_read_to_its_end_before_it_is_judged(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    long = "\n".join(f"line {number}" for number in range(40_000))
    path.write_bytes(f'text\n"{long}"\n"a\n'.encode() + b'\xff\nb"\ngood row\n')
    read = list(READERS[".csv"](path, 0, 0))
    assert [line.value["text"] if line.value else line.error for line in read] == [long, "not UTF-8", "good row"]


def test_a_csv_header_that_cannot_be_read_gives_its_place_to_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"t\xffext\na\nb\n")
    assert [(line.line, line.error) for line in READERS[".csv"](path, 0, 0)] == [(1, "not UTF-8")]


# ------------------------------------------------------------------ files and folders


def test_compressed_kinds() -> None:
    kinds = {
        name: kind_of(Path(name)) for name in ("a.ndjson.gz", "a.JSONL.gz", "a.csv.GZ", "a.parquet.gz", "a.gz", "a")
    }
    assert list(kinds.values()) == [".ndjson", ".jsonl", ".csv", None, None, None]


def test_a_compressed_file_of_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert len(run(str(path))) == 1


def test_the_kind_of_a_file_is_in_its_fingerprint(tmp_path: Path) -> None:
    for name in ("a.csv", "a.tsv"):
        (tmp_path / name).write_text("text\nx\ty\n")
    one, other = (open_source(Source(str(tmp_path / name)), where=WHERE) for name in ("a.csv", "a.tsv"))
    assert one.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_saved_data_set_has_splits_and_is_known_by_its_bytes(tmp_path: Path, streaming: bool) -> None:
    datasets = pytest.importorskip("datasets")
    for name, texts in (("one", ["a", "b"]), ("two", ["c", "d"])):
        datasets.Dataset.from_list([{"text": text} for text in texts]).save_to_disk(str(tmp_path / name))

    def opened(**source: Any) -> Any:
        return open_source(Source(str(tmp_path / "one"), **source), where=WHERE, streaming=streaming)

    assert [line.value["text"] for line in opened(split="train[:1]").lines()] == ["a"]
    with pytest.raises(DataError, match="has no split 'test'"):
        opened(split="test")
    before = opened().fingerprint()
    assert before != opened(split="train[:1]").fingerprint()
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    (other,) = (tmp_path / "two").glob("*.arrow")
    arrow.write_bytes(other.read_bytes())
    assert opened().fingerprint() != before


def test_a_split_of_thousands_of_digits(write_rows: Callable[..., str]) -> None:
    with pytest.raises(DataError, match="is no split"):
        open_source(Source(write_rows([GOOD]), split=f"train[:{'9' * 5000}]"), where=WHERE)


@pytest.mark.parametrize("damage", ["a file", "a dangling link", "deep JSON"])
def test_an_entry_that_is_none_is_made_again(write_rows: Callable[..., str], tmp_path: Path, damage: str) -> None:
    path, folder = write_rows([GOOD] * 3), tmp_path / "cache"
    run(path, folder)
    (entry,) = (each for each in folder.iterdir() if each.is_dir())
    if damage == "deep JSON":
        (entry / cache.CHECKED).write_text("[" * 200_000)
    else:
        entry.rename(tmp_path / "elsewhere")
        entry.write_text("x") if damage == "a file" else entry.symlink_to(tmp_path / "nowhere")
    assert len(run(path, folder)) == 3
    assert run(path, folder).cached


# ------------------------------------------------------------------ templates


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in messages %}" * 30 + "{% endfor %}" * 30,
        "{% if messages %}" * 120 + "{% endif %}" * 120,
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    ],
    ids=["loops", "conditions", "parentheses"],
)
def test_a_template_nested_beyond_python_s_limits(source: str) -> None:
    with pytest.raises(DataError, match="the chat template is nested too deeply"):
        ChatTemplate(source, {})


# ------------------------------------------------------------------ mixtures and sizes


def test_shares_as_large_as_floats_are() -> None:
    assert shares([10, 10], [1e308, 1e308]) == [10, 10]
    sources, _ = interleave([3, 3], [1e308, 1e308], seed=0, stopping_strategy="all_exhausted")
    assert set(sources.tolist()) == {0, 1}


def test_a_weight_so_small_that_the_others_would_go_on_for_ever() -> None:
    with pytest.raises(DataError, match=r"data\.datasets\[1\]\.weight: its share of 1e-10 is too small"):
        interleave([100, 3], [1.0, 1e-10], seed=0, stopping_strategy="all_exhausted")


def test_a_length_beyond_32_bits_is_counted(write_rows: Callable[..., str]) -> None:
    prepared = run(write_rows([GOOD] * 4))
    stats = data_stats(prepared, max_length=2**31, batch_size=2, sequences_per_step=2, packing_strategy=None)
    assert stats.tokens == int(np.asarray(prepared.lengths).sum())


# ------------------------------------------------------------------ the screen


def test_what_data_says_cannot_steer_a_terminal() -> None:
    problem = Problem("x", "role \x1b[31mred\x9b2J", Origin("data", "rows.jsonl", 3), help="not \x07 this")
    said = "\n".join(report_lines(problem))
    assert "role ␛[31mred\ufffd2J" in said
    assert not any(ord(letter) < 32 for letter in said.replace("\n", ""))
