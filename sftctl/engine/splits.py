"""One side of the data as the loop asks for it: the batches of a step, and what the run directory says of them.

| | whole | streamed |
|---|---|---|
| an epoch | all rows, laid into bins once | the whole run: `max_steps` steps |
| rows and plan of a step | the data set's | those of the window that the step lies in |
| `state`, in each checkpoint | nothing: they follow from the step | where the window begins |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sftctl.engine.data.laid import trained_at_cuts
from sftctl.engine.data.ledger import Dropped, Ledger
from sftctl.engine.data.plan import EpochPlan
from sftctl.engine.data.prepare import Prepared
from sftctl.engine.data.stream import Stream
from sftctl.records import Bins


class Split(Protocol):
    """Training or evaluation rows. `rows` are all of them, or those of the window that trains now.

    `bins` are those of the first epoch, or of that window.
    """

    @property
    def rows(self) -> Prepared: ...
    @property
    def bins(self) -> Bins: ...
    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def identity(self) -> Mapping[str, str]:
        """What a checkpoint must agree with: the rows and the plan of batches, by their hashes."""
        ...

    @property
    def state(self) -> Mapping[str, Any] | None: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...
    def at(self, epoch: int, step: int) -> tuple[Prepared, EpochPlan, int]:
        """The rows and the plan of a step of an epoch, and its number in that plan."""
        ...

    def facts(self) -> dict[str, Any]:
        """What data.json says of this side."""
        ...

    def dropped(self) -> Iterable[Dropped]:
        """The rows left out; of a stream those of the present window."""
        ...


@dataclass(frozen=True, slots=True)
class WholeSplit:
    """Rows that are all there, and the plan of an epoch."""

    rows: Prepared
    plan: Callable[[int], EpochPlan]

    @property
    def bins(self) -> Bins:
        return self.plan(0).bins

    @property
    def steps_per_epoch(self) -> int:
        return self.plan(0).num_steps

    @property
    def identity(self) -> Mapping[str, str]:
        return {"data": self.rows.fingerprint, "plan": self.plan(0).global_digest}

    @property
    def state(self) -> None:
        return None

    def restore(self, state: Mapping[str, Any]) -> None:
        raise AssertionError("a whole data set has no state")

    def at(self, epoch: int, step: int) -> tuple[Prepared, EpochPlan, int]:
        return self.rows, self.plan(epoch), step

    def facts(self) -> dict[str, Any]:
        facts = _facts(self.rows.ledger, self.rows, self.rows.fingerprint, self.plan(0))
        return {**facts, "steps_per_epoch": self.steps_per_epoch}

    def dropped(self) -> Iterable[Dropped]:
        return self.rows.ledger.dropped()


@dataclass(frozen=True, slots=True)
class StreamedSplit:
    """Rows that come as a stream: an epoch is the run."""

    stream: Stream
    total_steps: int

    @property
    def rows(self) -> Prepared:
        return self.stream.window.rows

    @property
    def bins(self) -> Bins:
        return self.stream.window.plan.bins

    @property
    def steps_per_epoch(self) -> int:
        return self.total_steps

    @property
    def identity(self) -> Mapping[str, str]:
        return {"data": self.stream.fingerprint, "plan": self.stream.plan_digest}

    @property
    def state(self) -> Mapping[str, Any]:
        return self.stream.window.state

    def restore(self, state: Mapping[str, Any]) -> None:
        self.stream.restore(state)

    def at(self, epoch: int, step: int) -> tuple[Prepared, EpochPlan, int]:
        assert epoch == 0, epoch
        window = self.stream.window_at(step)
        return window.rows, window.plan, step - window.first_step

    def facts(self) -> dict[str, Any]:
        window = self.stream.window
        facts = _facts(window.ledger, window.rows, self.stream.fingerprint, window.plan)
        progress = {"number": window.state["number"], "first_step": window.first_step, "end_step": window.end_step}
        return {**facts, "window": progress}

    def dropped(self) -> Iterable[Dropped]:
        return self.stream.window.dropped


def _facts(ledger: Ledger, rows: Prepared, fingerprint: str, plan: EpochPlan) -> dict[str, Any]:
    bins = plan.bins
    return {
        **ledger.as_data(),
        "fingerprint": fingerprint,
        "bins": len(bins),
        "documents": len(bins.sample),
        "tokens": int(bins.length.sum()),
        "longest_document": int(bins.length.max(initial=0)),
        "trained_tokens_at_cuts": trained_at_cuts(rows, bins),
        "plan_hash": plan.digest,
    }
