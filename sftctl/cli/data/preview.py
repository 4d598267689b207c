"""`sftctl data preview`: samples as the model will see them.

Text of rows is not to be trusted: control characters, which could move the cursor or recolour the terminal, are
shown as pictures (␛), and the page escapes everything.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from sftctl.cli.command import Command
from sftctl.cli.data.prepared import prepared_inputs
from sftctl.cli.files import FILES
from sftctl.cli.options import Invocation
from sftctl.cli.switches import Example, Switch, Usage
from sftctl.cli.terminal import has_colour, styled, write
from sftctl.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from sftctl.engine.data.prepare import Prepared
    from sftctl.engine.data.preview import Preview, Run

ROWS = 3
LEGEND = "<<trained>>, not trained, !!straddles the beginning of what trains: not trained!!"
COLOUR_LEGEND = (
    ("trained", "bold green"),
    ("not trained", "dim"),
    ("special token, not trained", "cyan"),
    ("straddles", "red"),
)
CONTROL_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}
CONTROL_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)

USAGE = Usage(
    summary="Show rows token by token: what trains, what does not, where documents begin.",
    about=(
        "Special tokens are shown as they are written, weights other than 1 as ×0.5. JSON has a line a sequence: "
        "ids, tokens, trained, weight and document, an entry a token, and the text."
    ),
    words=FILES,
    switches=(
        Switch("rows", f"How many of each source. [{ROWS}]", value="N"),
        Switch("source", "Only this source: its number from 0, or the end of its path.", value="SOURCE"),
        Switch("packed", "Whole sequences, as packing lays rows into them."),
        Switch("eval", "The rows to evaluate on instead of those to train on."),
        Switch("html", "Write a page instead, for a browser.", value="FILE"),
        Switch("format", "How it is written. [text]", choices=("text", "json")),
    ),
    examples=(
        Example("sftctl data preview run.toml", "Which words are trained:"),
        Example("sftctl data preview run.toml --packed --rows 1", "What shares a sequence:"),
        Example("sftctl data preview run.toml --format json | jq .trained", "For a program:"),
    ),
    takes_leaves=True,
)


def run(invocation: Invocation) -> None:
    rows = _count(invocation)
    _, inputs = prepared_inputs(invocation)
    split = inputs.evaluation if invocation.on("eval") else inputs.train
    if split is None:
        help = "name some with data.eval_datasets, or set data.test_split_size"
        raise DataError(Problem("data.eval_datasets", "there are no rows to evaluate on", help=help))
    from sftctl.engine.data.preview import preview  # which the errors before do not need

    source = _source(invocation, split.rows)
    bins = split.bins if invocation.on("packed") else None
    previews = preview(split.rows, rows=rows, source=source, bins=bins)
    if invocation.text("html"):
        _write_page(Path(invocation.text("html")), previews)
    elif invocation.text("format", "text") == "json":
        for each in previews:
            write(json.dumps(each.as_data(), ensure_ascii=False))
    else:
        write("\n".join(_lines(previews, colour=has_colour(sys.stdout))))


def _count(invocation: Invocation) -> int:
    text = invocation.text("rows", str(ROWS))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(Problem("--rows", f"{text!r} is no number of rows", help="a whole number from 1 up"))
    return int(text)


def _source(invocation: Invocation, rows: Prepared) -> int | None:
    wanted, paths = invocation.text("source"), [source.source for source in rows.ledger.sources]
    if not wanted:
        return None
    if wanted.isdecimal() and int(wanted) < len(paths):
        return int(wanted)
    found = [number for number, path in enumerate(paths) if path.endswith(wanted)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{number} is {path}" for number, path in enumerate(paths))
    what = f"{wanted!r} fits {len(found)} sources" if found else f"there is no source {wanted!r}"
    raise ConfigError(Problem("--source", what, help=listed))


def _write_page(path: Path, previews: tuple[Preview, ...]) -> None:
    from sftctl.engine.data.page import page  # only where a page is asked for

    try:
        path.write_text(page(previews, title="What trains"), encoding="utf-8")
    except OSError as error:
        raise ConfigError(Problem("--html", f"{path} cannot be written: {error.strerror}")) from error
    write(f"wrote {path}")


def _lines(previews: tuple[Preview, ...], *, colour: bool) -> Iterator[str]:
    if colour:
        yield "  ".join(styled(name, style, colour=True) for name, style in COLOUR_LEGEND)
    else:
        yield LEGEND
    for number, each in enumerate(previews, start=1):
        trained = sum(token.trained for token in each.tokens)
        yield ""
        heading = f"sequence {number}: {len(each.tokens):,} tokens, {trained:,} trained"
        yield styled(heading, "bold", colour=colour)
        for document, group in groupby(each.runs, key=lambda run: run.document):
            runs = list(group)
            origin = each.documents[document]
            yield styled(f"-- {origin.source}, row {origin.row}", "dim", colour=colour)
            yield (_coloured(runs) if colour else _plain(runs)).rstrip("\n")


def _coloured(runs: Iterable[Run]) -> str:
    parts = []
    for (style, weight), alike in groupby(runs, key=lambda run: (_style(run), _weight(run.trained, run.weight))):
        text = "".join(_safe(run.text) for run in alike)
        parts.append("\n".join(styled(line, style, colour=True) for line in text.split("\n")) + weight)
    return "".join(parts)


def _style(run: Run) -> str:
    return "red" if run.straddles else "bold green" if run.trained else "cyan" if run.special else "dim"


def _plain(runs: Iterable[Run]) -> str:
    parts = []
    for (trained, weight, straddles), alike in groupby(runs, key=lambda run: (run.trained, run.weight, run.straddles)):
        text = "".join(_safe(run.text) for run in alike)
        mark = ("!!", "!!") if straddles else ("<<", ">>") if trained else ("", "")
        parts.append(f"{mark[0]}{text}{mark[1]}{_weight(trained, weight)}")
    return "".join(parts)


def _safe(text: str) -> str:
    return text.translate(CONTROL_PICTURES)


def _weight(trained: bool, weight: float) -> str:
    return f"×{weight:g}" if trained and weight != 1 else ""


command = Command("preview", USAGE, run)
