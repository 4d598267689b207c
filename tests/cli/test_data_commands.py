"""`sftctl data preview` and `data stats`, from the outside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sftctl.cli.app import main

TALK = {"messages": [{"role": "user", "content": "a <b> & c"}, {"role": "assistant", "content": "d", "weight": 0.5}]}
PLAIN_TALK = """\
<|im_start|>user
a <b> & c<|im_end|>
<|im_start|>assistant
<<d<|im_end|>>>×0.5
"""


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [TALK, TALK, TALK]))
    return str(path)


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["data", *words]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def options(path: str) -> list[str]:
    return ["--tokenizer", "bytes", "--dataset", path, "--assistant-only-loss"]


def test_preview_as_text(capsys: pytest.CaptureFixture[str], rows: str) -> None:
    text = said(capsys, "preview", "--rows", "1", *options(rows))
    assert text == (
        "<<trained>>, not trained, !!straddles the beginning of what trains: not trained!!\n\n"
        f"sequence 1: 31 tokens, 2 trained\n-- {rows}, row 1\n{PLAIN_TALK}"
    )


def test_preview_as_json_has_an_entry_a_token(capsys: pytest.CaptureFixture[str], rows: str) -> None:
    lines = said(capsys, "preview", "--rows", "2", "--format", "json", *options(rows)).splitlines()
    assert len(lines) == 2
    first = json.loads(lines[0])
    assert set(first) == {"ids", "tokens", "trained", "weight", "document", "text"}
    assert {len(first[key]) for key in ("ids", "tokens", "trained", "weight", "document")} == {31}
    trained = [token for token, trains in zip(first["tokens"], first["trained"], strict=True) if trains]
    assert trained == ["d", "<|im_end|>"]
    assert [weight for weight in first["weight"] if weight] == [0.5, 0.5]
    assert first["text"] == "<|im_start|>user\na <b> & c<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n"


def first_text(capsys: pytest.CaptureFixture[str], rows: str) -> str:
    line = said(capsys, "preview", "--format", "json", "--rows", "1", *options(rows))
    return str(json.loads(line)["text"])


def test_preview_of_packed_sequences_shows_documents(capsys: pytest.CaptureFixture[str], rows: str) -> None:
    line = said(capsys, "preview", "--packed", "--packing", "--format", "json", "--rows", "1", *options(rows))
    packed = json.loads(line)
    assert packed["document"] == [0] * 31 + [1] * 31 + [2] * 31
    assert packed["text"] == first_text(capsys, rows) * 3
    text = said(capsys, "preview", "--packed", "--packing", "--rows", "1", *options(rows))
    assert text.count(f"-- {rows}, row") == 3


def test_the_page_escapes_everything(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    evil = "</pre><script>alert(1)</script>\"'&"
    path = tmp_path / "<img src=x>.jsonl"
    path.write_text(json.dumps({"prompt": evil, "completion": evil}) + "\n")
    page = tmp_path / "page.html"
    assert (
        said(capsys, "preview", "--html", str(page), "--tokenizer", "bytes", "--dataset", str(path))
        == f"wrote {page}\n"
    )
    text = page.read_text()
    assert "<script>" not in text
    assert "<img" not in text
    assert text.count("&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;") == 2
    body = text.partition("<body>")[2]
    assert {tag.split()[0] for tag in re.findall(r"<(/?\w[^>]*)>", body)} <= {
        *(
            "sub",
            "/sub",
            "h1",
            "/h1",
            "h2",
            "/h2",
            "p",
            "/p",
            "pre",
            "/pre",
            "div",
            "/div",
            "span",
            "/span",
            "/body",
            "/html",
        )
    }


def test_the_page_shows_weights_documents_and_what_trains(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, rows: str
) -> None:
    page = tmp_path / "page.html"
    said(capsys, "preview", "--html", str(page), "--packed", "--packing", "--rows", "1", *options(rows))
    text = page.read_text()
    assert text.count('<span class="t">d<sub>×0.5</sub></span><span class="t s">&lt;|im_end|&gt;<sub>×0.5</sub>') == 3
    assert text.count(", row ") == 3
    assert "Sequence 1: 93 tokens, 6 trained" in text


def test_a_terminal_sees_what_trains_by_colour(
    capsys: pytest.CaptureFixture[str], rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop token too: it is the commonest thing not to."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = said(capsys, "preview", "--rows", "1", *options(rows))
    assert "\x1b[1;32md<|im_end|>\x1b[0m×0.5" in text
    assert "\x1b[36m<|im_start|>\x1b[0m\x1b[2massistant\x1b[0m" in text


def test_control_characters_of_rows_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "\x1b[31mred\x07\x9b", "completion": "\x1b]0;title\x07"}) + "\n")
    words = ["preview", "--tokenizer", "bytes", "--dataset", str(path)]
    assert "␛[31mred␇�<<␛]0;title␇<|im_end|>>>" in said(capsys, *words)
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = said(capsys, *words)
    assert set(re.findall(r"\x1b.", coloured)) == {"\x1b["}
    assert "\x07" not in coloured


def test_stats_as_text_and_json(capsys: pytest.CaptureFixture[str], rows: str) -> None:
    text = said(capsys, "stats", *options(rows))
    for line in (
        r"rows\.jsonl +3 +93 +6 +6\.5%  trained",
        r"  assistant +6 +6 +100\.0%",
        r"min 31  5% 31 .* max 31",
        r"bfd +1 +93 +9\.1% +1",
        r"a step has 93 tokens on average",
    ):
        assert re.search(line, text), line
    figures: dict[str, Any] = json.loads(said(capsys, "stats", "--format", "json", *options(rows)))
    assert figures["cached"] is True
    assert figures["prepare_seconds"] > 0
    assert figures["quantiles"]["p50"] == 31
    assert figures["packed"][2] | {"fill": 0} == {
        "strategy": "wrapped",
        "sequences": 1,
        "tokens": 93,
        "fill": 0,
        "steps_per_epoch": 1,
    }
    assert figures["sources"][0]["rows_read"] == 3


def test_a_stream_is_looked_at_by_its_first_window(
    capsys: pytest.CaptureFixture[str], rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so."""
    monkeypatch.setattr("sftctl.engine.data.stream.WINDOW_ROWS", 2)
    streamed = ["--streaming", "--max-steps", "9", "--per-device-train-batch-size", "1", *options(rows)]
    text = said(capsys, "stats", *streamed)
    assert "streamed: all figures are of the first window, 2 rows, and an epoch is a pass over those" in text
    figures = json.loads(said(capsys, "stats", "--format", "json", *streamed))
    assert (figures["streamed"], figures["rows"], figures["cached"]) == (True, 2, False)
    text = said(capsys, "preview", *streamed)
    assert re.findall(r"row (\d)", text) == ["1", "2"]
    assert said(capsys, "stats", "--streaming", *options(rows), code=2).startswith(
        "error: data.streaming: a stream has no known end, and train.max_steps is not set"
    )


def test_packed_sequences_are_those_that_train(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Rows of equal length change places between sequences in each epoch; shown are those of the first."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n:04}"}) + "\n" for n in range(60)))
    packed = ["--packing", "--max-length", "32", "--tokenizer", "bytes", "--dataset", str(path), "--format", "json"]
    words = ["preview", "--packed", "--rows", "99", *packed]
    texts = [json.loads(line)["text"] for line in said(capsys, *words).splitlines()]
    streamed = said(capsys, *words, "--streaming", "--max-steps", "1").splitlines()
    assert sorted("".join(texts).split("<|im_end|>")[:-1]) == [f"{n:04}" for n in range(60)]
    assert texts[0] != "".join(f"{n:04}<|im_end|>" for n in range(6))
    in_order = said(capsys, *words, "--no-shuffle").splitlines()
    assert json.loads(in_order[0])["text"] == "".join(f"{n:04}<|im_end|>" for n in range(6))
    assert len(streamed) == len(texts) == len(in_order)


def test_a_mask_problem_is_shown_and_no_error(capsys: pytest.CaptureFixture[str], tmp_path: Path, rows: str) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    text = said(capsys, "stats", "--chat-template-path", str(template), "--tokenizer", "bytes", "--dataset", rows)
    assert "mask problem: data.datasets[0]: none of the stop tokens (<|im_end|>) trains in any of the 3 rows" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "0"], "error: --rows: '0' is no number of rows"),
        (["--source", "x"], "error: --source: there is no source 'x'"),
        (["--eval"], "error: data.eval_datasets: there are no rows to evaluate on"),
        (["--html", "/nowhere/x.html"], "error: --html: /nowhere/x.html cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_shown(capsys: pytest.CaptureFixture[str], rows: str, words: list[str], message: str) -> None:
    assert said(capsys, "preview", *words, *options(rows), code=2).startswith(message)
