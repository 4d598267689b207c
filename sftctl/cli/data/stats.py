"""`sftctl data stats`: the figures one chooses max_length and packing by."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sftctl.cli.command import Command
from sftctl.cli.data.prepared import prepared_inputs, world_size
from sftctl.cli.figures import share
from sftctl.cli.files import FILES
from sftctl.cli.options import Invocation
from sftctl.cli.proof_table import PROOF_COLUMNS, proof_rows, remarks, source_name, violation_text
from sftctl.cli.switches import Example, Switch, Usage
from sftctl.cli.terminal import has_colour, styled, text_table, write

if TYPE_CHECKING:
    from sftctl.engine.data.proof import MaskProof
    from sftctl.engine.data.stats import DataStats

BAR_WIDTH = 40

USAGE = Usage(
    summary="Count what trains: by source and role, by length, and what padding and packing make of it.",
    about="Of a stream (data.streaming) it counts the first window of rows; nothing further is read.",
    words=FILES,
    switches=(Switch("format", "How it is written. [text]", choices=("text", "json")),),
    examples=(
        Example("sftctl data stats run.toml", "The rows of a file's run:"),
        Example("sftctl data stats run.toml --max-length 2048", "With another length:"),
        Example("sftctl data stats run.toml --format json | jq .cached", "For a program:"),
    ),
    takes_leaves=True,
)


def run(invocation: Invocation) -> None:
    bundle, inputs = prepared_inputs(invocation)
    from sftctl.engine.data.stats import data_stats  # which the errors before do not need

    rows, batch_size = inputs.train.rows, bundle.train.per_device_train_batch_size
    stats = data_stats(
        rows,
        max_length=bundle.sft.max_length,
        batch_size=batch_size,
        sequences_per_step=batch_size * bundle.train.gradient_accumulation_steps * world_size(bundle),
        packing_strategy=bundle.sft.packing_strategy if bundle.sft.packing else None,
        seed=bundle.run.seed,
    )
    if invocation.text("format", "text") == "json":
        figures = {
            **rows.proof.as_data(),
            **rows.ledger.as_data(),
            **stats.as_data(),
            "streamed": bundle.data.streaming,
        }
        write(json.dumps(figures, indent=2))
        return
    colour = has_colour(sys.stdout)
    write("\n".join((*_proof(rows.proof, colour=colour), "", *_lengths(stats, colour=colour), "")))
    write("\n".join((*_packing(stats, colour=colour), "", *_summary(stats))))
    if bundle.data.streaming:
        write(f"streamed: all figures are of the first window, {stats.rows:,} rows, and an epoch is a pass over those")


def _proof(proof: MaskProof, *, colour: bool) -> Iterator[str]:
    yield from text_table(PROOF_COLUMNS, list(proof_rows(proof)), colour=colour)
    for source in proof.sources:
        yield from (f"note: {source_name(source)}: {line}" for line in remarks(source))
    for problem in proof.violations:
        yield styled(f"mask problem: {violation_text(problem)}", "red", colour=colour)


def _lengths(stats: DataStats, *, colour: bool) -> Iterator[str]:
    names = ["min", *(f"{100 * level:g}%" for level, _ in stats.quantiles[1:-1]), "max"]
    yield styled("tokens a row, before any cut", "bold", colour=colour)
    yield "  ".join(f"{name} {length:,}" for name, (_, length) in zip(names, stats.quantiles, strict=True))
    most = max(bar.rows for bar in stats.histogram)
    width = len(f"{stats.histogram[-1].high:,}")
    for bar in stats.histogram:
        filled = "█" * max(round(BAR_WIDTH * bar.rows / most), int(bar.rows > 0))
        yield f"{bar.low:>{width},} to {bar.high - 1:>{width},}  {filled} {bar.rows:,}"


def _packing(stats: DataStats, *, colour: bool) -> Iterator[str]:
    rows = [
        (
            each.strategy,
            f"{each.sequences:,}",
            f"{each.tokens:,}",
            f"{100 * each.fill:.1f}%",
            f"{each.steps_per_epoch:,}",
        )
        for each in (stats.unpacked, *stats.packed)
    ]
    yield from text_table(("packing", ">sequences", ">tokens", ">filled", ">steps an epoch"), rows, colour=colour)


def _summary(stats: DataStats) -> Iterator[str]:
    over = share(stats.over_max_length, stats.rows)
    yield f"{stats.over_max_length:,} rows ({over}) are longer than max_length"
    yield f"without packing {100 * stats.padding_waste:.1f}% of a batch is padding"
    yield f"a step has {stats.tokens_per_step:,.0f} tokens on average"
    yield f"prepared in {stats.prepare_seconds:.2f} s" + (", from the cache" if stats.cached else "")


command = Command("stats", USAGE, run)
