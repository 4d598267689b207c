"""The files of a run directory that say what the run is: its settings, what it runs on, what became of the rows."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, islice
from typing import Any

from sftctl.config import show
from sftctl.config.resolve import Resolved
from sftctl.engine.assemble import Inputs, Machine
from sftctl.engine.data.ledger import Dropped
from sftctl.runs.directory import RunDirectory
from sftctl.runs.environment import describe, write_environment
from sftctl.runs.files import write_atomically
from sftctl.runs.ledger import read_dropped, write_ledger
from sftctl.runs.origins import write_origins
from sftctl.runs.secrets import redact_shapes


def write_description(
    run: RunDirectory, resolved: Resolved, machine: Machine, *, device: str, command: Sequence[str]
) -> None:
    """config.toml, origins.json, environment.json."""
    write_atomically(run.config, redact_shapes(show.dump(resolved, "toml")))
    write_origins(run, show.origins(resolved))
    details = {
        "precision": machine.precision,
        "head": asdict(machine.head_report),
        "isolation": asdict(machine.isolation),
        "shares_prefixes": machine.shares_prefixes,
    }
    write_environment(run, describe(device=device, command=command or sys.argv, details=details))


def write_rows(run: RunDirectory, inputs: Inputs) -> None:
    """data.json and dropped.jsonl; of a stream what was left out up to the end of the window that trains now."""
    train, evaluation = inputs.train, inputs.evaluation
    ledger, dropped = {"train": train.facts()}, [_dropped("train", train.dropped())]
    if train.state is not None:
        known = (row for row in read_dropped(run) if row["split"] == "train")
        dropped.insert(0, islice(known, train.state["dropped"]))
    if evaluation is not None:
        ledger["evaluation"] = evaluation.facts()
        dropped.append(_dropped("evaluation", evaluation.dropped()))
    write_ledger(run, ledger, chain.from_iterable(dropped))


def identity_of(inputs: Inputs, machine: Machine) -> Mapping[str, str]:
    """What else must be the same for a run to go on: the training split's own, and the base of an adapter."""
    known = inputs.train.identity
    return known if machine.base_digest is None else {**known, "base model": machine.base_digest}


def _dropped(split: str, rows: Iterable[Dropped]) -> Iterator[dict[str, Any]]:
    return ({"split": split, **asdict(row)} for row in rows)
