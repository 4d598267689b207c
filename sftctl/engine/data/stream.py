"""Rows that are read as they are trained: windows of a stream, each with its masks, bins and plan of its own.

    sources -> rows mixed -> Window(rows, plan), Window, …        step s lies in one window

A window is read until it has WINDOW_ROWS rows or WINDOW_TOKENS tokens and fills at least one global batch; then it
ends where its last whole global batch does, and the rows behind that begin the next one. Packing and shuffling see
a window at a time. Where all sources have ended, the next pass over them begins, with a smaller last step before.

Properties
- A window follows from where it begins (`state`: plain data) and the settings, so that a resume reads one window
  anew and goes on, however far the stream is: O(1). The batches are those of the run that was never stopped, to
  the bit; the window's fingerprint, which is in the state, proves it.
- Memory holds two windows, the one that trains and the next one, which a thread prepares meanwhile.
- Every process prepares every window and takes its share of the batches: the global batches do not depend on the
  number of processes.

Trade-off: nothing is cached; what is far apart in a file never meets in a batch; and a window packs by itself, which
costs little: bins of 4,096 tokens are 99.4 % full over all of GSM8K, 99.1 % over half of it, 99.3 % over 1,024 rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sftctl.engine.data.ahead import START, Part, ReadAhead
from sftctl.engine.data.book import Book
from sftctl.engine.data.digests import digest_of_text
from sftctl.engine.data.labels import TruncationMode
from sftctl.engine.data.laid import proven
from sftctl.engine.data.ledger import Dropped, Ledger, added, source_ledger_from
from sftctl.engine.data.mixing import Mixing, Stopping, check_mixture, uniform
from sftctl.engine.data.origin import Place, Source
from sftctl.engine.data.pipeline import Pipeline
from sftctl.engine.data.plan import EpochPlan
from sftctl.engine.data.prepare import Prepared, fingerprint_of
from sftctl.engine.data.proof import MaskProof, prove
from sftctl.engine.data.rendering import Loss
from sftctl.engine.data.sources import open_source
from sftctl.engine.data.store import Store, Writer
from sftctl.engine.data.tokens import Tokenizer
from sftctl.engine.data.worker import Kit, Settings
from sftctl.errors import DataError, Problem
from sftctl.records import Bins

WINDOW_ROWS = 16_384
WINDOW_TOKENS = 2**22
DRAWS = 1024

State = Mapping[str, Any]
"""Where a window begins, as plain data: its number, its first step, the place in each source, the books so far."""


@dataclass(frozen=True, slots=True)
class Window:
    """Rows of a stream that train from step `first_step` on. `ledger` counts all rows up to its end.

    `state` is where it begins, `following` where the next one does, in a pass of its own if `ends_pass`.
    """

    state: State
    following: State
    ends_pass: bool
    rows: Prepared
    plan: EpochPlan
    ledger: Ledger
    dropped: tuple[Dropped, ...]

    @property
    def first_step(self) -> int:
        return int(self.state["step"])

    @property
    def end_step(self) -> int:
        return self.first_step + self.plan.num_steps


class Mixer:
    """Which source gives the next row: one after the other, or drawn by weight as `mixing.interleave` does."""

    def __init__(
        self,
        sources: Sequence[ReadAhead],
        weights: Sequence[float],
        *,
        mixing: Mixing,
        stopping_strategy: Stopping,
        seed: int,
    ) -> None:
        self._sources, self._mixing, self._stopping, self._seed = sources, mixing, stopping_strategy, seed
        self._bounds = np.cumsum(np.array(weights) / sum(weights))
        self.seek(passes=0, draws=0)

    def seek(self, *, passes: int, draws: int) -> None:
        """Go on after `draws` rows of a pass."""
        self.passes, self.draws = passes, draws
        self._drawn: list[int] = []

    def has_next(self) -> bool:
        """Whether this pass has a further row."""
        if self._mixing == "concat":
            return any(source.has_next() for source in self._sources)
        if not all(source.has_next() for source in self._sources):
            return False
        return self._stopping == "first_exhausted" or any(source.next_passes == 0 for source in self._sources)

    def draw(self) -> int:
        """The source of the next row; `has_next` was asked before."""
        self.draws += 1
        if self._mixing == "concat":
            return next(number for number, source in enumerate(self._sources) if source.has_next())
        if not self._drawn:
            words = uniform(DRAWS, self._seed, before=self.draws - 1, passes=self.passes)
            chosen = np.minimum(np.searchsorted(self._bounds, words, side="right"), len(self._sources) - 1)
            self._drawn = chosen.tolist()[::-1]
        return self._drawn.pop()


class Stream:
    """The windows of one run, in order. Raises DataError for what is wrong with its sources.

    `proof` and `plan_digest` are of the first window, as every process that opens the stream sees it.
    `lay` makes bins of lengths. `batches` are `batch_size`, `accumulation` and `world_size` of the plan. From step
    `end_step` on no window is needed.
    """

    def __init__(
        self,
        sources: Sequence[ReadAhead],
        mixer: Mixer,
        *,
        fingerprint: str,
        tokenizer: Tokenizer,
        where: str,
        lay: Callable[[NDArray[np.int32]], Bins],
        batches: Mapping[str, int],
        seed: int,
        shuffle: bool,
        end_step: int,
    ) -> None:
        self.fingerprint = fingerprint
        self._sources, self._mixer, self._tokenizer, self._where = sources, mixer, tokenizer, where
        self._lay, self._batches, self._seed, self._shuffle = lay, dict(batches), seed, shuffle
        self._global_batch_size = int(np.prod(list(batches.values())))
        self._end_step = end_step
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stream")
        self._following: Future[Window] | None = None
        for source in sources:
            if not source.has_next():
                raise source.nothing_left()
        self.proof = MaskProof((), ())
        first = self._read(_beginning(len(sources)))
        rows = replace(first.rows, proof=self._prove(first))
        there = [number for number, store in enumerate(rows.stores) if len(store)]
        rows = proven(rows, first.plan.bins, on_mask_problem="warn", sources=there)
        self.proof = rows.proof
        self.window = replace(first, rows=rows)
        self.plan_digest = first.plan.global_digest

    def window_at(self, step: int) -> Window:
        """The window that step `step` lies in: the present one, or one after it."""
        while step >= self.window.end_step:
            self.window = self._following.result() if self._following else self._read_on(self.window)
            self._following = None
        assert step >= self.window.first_step, (step, self.window.first_step)
        if self._following is None and self.window.end_step < self._end_step:
            self._following = self._pool.submit(self._read_on, self.window)
        return self.window

    def restore(self, state: State) -> None:
        """Make the window of a state the present one. Raises DataError where its rows are others now."""
        if self._following is not None:
            self._following.exception()  # waits: it reads from the same sources
            self._following = None
        if state["number"] != self.window.state["number"]:
            self._seek(state)
            self.window = self._read(state)
        if self.window.rows.fingerprint != state["fingerprint"]:
            message = f"the stream does not give the rows that it gave before, at {self._said(state)}"
            help = "restore the files that the run was started with, or start another run"
            raise DataError(Problem(self._where, message, help=help))

    def _said(self, state: State) -> str:
        rows = [f"row {place[0] + 1} of {source.label}" for source, place in self._places(state)]
        return ", ".join(rows)

    def _places(self, state: State) -> list[tuple[ReadAhead, Sequence[Any]]]:
        return list(zip(self._sources, state["places"], strict=True))

    def _seek(self, state: State) -> None:
        for source, place in self._places(state):
            source.seek(Place(*place))
        self._mixer.seek(passes=state["passes"], draws=state["draws"])

    def _read_on(self, window: Window) -> Window:
        """The window after one that was the last to be read."""
        if window.ends_pass:
            self._seek(window.following)
        return self._read(window.following)

    def _read(self, state: State) -> Window:
        """The window that begins where the sources stand, which is at `state`."""
        started = time.perf_counter()
        order, lengths, ends_pass = self._fill()
        size = len(order) if ends_pass else self._whole_batches(np.array(lengths, dtype=np.int32))
        source_of = np.array(order[:size], dtype=np.int16)
        counts = np.bincount(source_of, minlength=len(self._sources)).tolist()
        parts = [source.hand_out(count) for source, count in zip(self._sources, counts, strict=True)]
        self._mixer.seek(passes=state["passes"], draws=state["draws"] + size)
        rows = self._prepared(parts, source_of, started)
        plan = EpochPlan(
            self._lay(rows.lengths),
            seed=self._seed,
            epoch=state["number"],
            fingerprint=rows.fingerprint,
            shuffle=self._shuffle,
            **self._batches,
        )
        ledger = _added(state["ledger"], rows.ledger)
        dropped = tuple(row for part in parts for row in part.dropped)
        following = {
            "number": state["number"] + 1,
            "step": state["step"] + plan.num_steps,
            "passes": state["passes"] + ends_pass,
            "draws": 0 if ends_pass else self._mixer.draws,
            "places": [list(START if ends_pass else part.place) for part in parts],
            "ledger": [source.as_data() for source in ledger.sources],
            "dropped": state["dropped"] + len(dropped),
        }
        begun = {**state, "fingerprint": rows.fingerprint}
        return Window(begun, following, ends_pass, rows, plan, ledger, dropped)

    def _fill(self) -> tuple[list[int], list[int], bool]:
        """Take rows: the source of each, its length, and whether the pass ends with them."""
        order: list[int] = []
        lengths: list[int] = []
        tokens, rows_wanted, tokens_wanted = 0, WINDOW_ROWS, WINDOW_TOKENS
        while self._mixer.has_next():
            if len(order) >= rows_wanted or tokens >= tokens_wanted:
                if len(self._lay(np.array(lengths, dtype=np.int32))) >= self._global_batch_size:
                    return order, lengths, False
                rows_wanted, tokens_wanted = len(order) + WINDOW_ROWS, tokens + WINDOW_TOKENS
            order.append(self._mixer.draw())
            lengths.append(self._sources[order[-1]].take())
            tokens += lengths[-1]
        return order, lengths, True

    def _whole_batches(self, lengths: NDArray[np.int32]) -> int:
        """How many of these rows fill whole global batches: the most whose bins are not more than those."""
        whole = len(self._lay(lengths)) // self._global_batch_size * self._global_batch_size
        low, high = 1, len(lengths)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(self._lay(lengths[:middle])) <= whole else (low, middle - 1)
        return low

    def _prepared(self, parts: Sequence[Part], source_of: NDArray[np.int16], started: float) -> Prepared:
        stores = tuple(_store(source, part) for source, part in zip(self._sources, parts, strict=True))
        row_of = np.empty(len(source_of), dtype=np.int32)
        for number, store in enumerate(stores):
            row_of[source_of == number] = np.arange(len(store))
        return Prepared(
            stores=stores,
            source_of=source_of,
            row_of=row_of,
            fingerprint=fingerprint_of(stores, source_of, row_of),
            ledger=Ledger(tuple(_ledger(store) for store in stores)),
            proof=self.proof,
            tokenizer=self._tokenizer,
            prepare_seconds=time.perf_counter() - started,
        )

    def _prove(self, window: Window) -> MaskProof:
        """Of the first window; of a source that gives it no row, of its first rows."""
        proofs = []
        for number, (source, inside) in enumerate(zip(self._sources, window.rows.stores, strict=True)):
            store = inside if len(inside) else _store(source, source.peek())
            where = f"{self._where}[{number}]"
            proofs.append(prove(store, _ledger(store), where=where, tokenizer=self._tokenizer))
        return MaskProof.of(proofs)


def open_stream(
    sources: Sequence[Source],
    *,
    tokenizer: Tokenizer,
    max_length: int | None,
    truncation_mode: TruncationMode,
    completion_only_loss: bool | None,
    assistant_only_loss: bool,
    last_turn_only_loss: bool,
    dataset_text_field: str,
    mixing: Mixing,
    stopping_strategy: Stopping,
    seed: int,
    dataset_num_proc: int | None,
    on_bad_row: Literal["error", "skip"],
    on_mask_problem: Literal["error", "warn"],
    where: str = "data.datasets",
    **plan: Any,
) -> Stream:
    """The stream of these sources, its first window read and proven. Raises DataError, as `prepare` does.

    The names are those of the configuration; `plan` are `lay`, `batches`, `shuffle` and `end_step` of `Stream`.
    """
    if not sources:
        raise DataError(Problem(where, "there is no source", help="name one: --dataset FILE"))
    check_mixture(sources, mixing=mixing, where=where)
    loss = Loss(completion_only_loss, assistant_only_loss, last_turn_only_loss)
    settings = Settings(max_length, truncation_mode, loss, dataset_text_field, on_bad_row)
    kit = Kit(tokenizer)
    repeats = mixing == "interleave" and stopping_strategy == "all_exhausted"
    ahead, fingerprints = [], []
    for number, source in enumerate(sources):
        opened = open_source(source, where=f"{where}[{number}]", streaming=True)
        pipeline = Pipeline(source, opened, settings, kit, num_proc=dataset_num_proc)
        ahead.append(ReadAhead(pipeline, opened, repeats=repeats))
        reading = (source.path, source.format, sorted(source.columns.items()), source.weight)
        fingerprints.append(digest_of_text(opened.fingerprint(), repr(reading)))
    weights = [1.0 if source.weight is None else source.weight for source in sources]
    mixer = Mixer(ahead, weights, mixing=mixing, stopping_strategy=stopping_strategy, seed=seed)
    facts = (mixing, stopping_strategy, WINDOW_ROWS, WINDOW_TOKENS)
    fingerprint = digest_of_text(kit.digest_text(), repr(settings), repr(facts), *fingerprints)
    stream = Stream(ahead, mixer, fingerprint=fingerprint, tokenizer=tokenizer, where=where, seed=seed, **plan)
    if stream.proof.violations and on_mask_problem == "error":
        raise DataError(*stream.proof.violations)
    return stream


def _beginning(num_sources: int) -> State:
    places = [list(START)] * num_sources
    return {"number": 0, "step": 0, "passes": 0, "draws": 0, "places": places, "ledger": [], "dropped": 0}


def _store(source: ReadAhead, part: Part) -> Store:
    settled = source.pipeline.settled
    assert settled is not None
    writer, book = Writer(), Book(settled)
    book.add_fallen(part.fallen)
    for chunk, numbers, trained_cut in zip(part.chunks, part.numbers, part.trained_cuts, strict=True):
        book.add(chunk, trained_cut)
        writer.append(chunk, numbers)
    for row in part.dropped:
        writer.dropped.add(row)
    return writer.finish(book.meta(source.label, num_read=part.num_read, reasons=writer.dropped.reasons))


def _ledger(store: Store) -> Any:
    return source_ledger_from({**store.meta["ledger"], "rows_used": len(store)}, store.dropped)


def _added(before: Sequence[Mapping[str, Any]], ledger: Ledger) -> Ledger:
    """The books so far, and those of one window more."""
    known = [source_ledger_from(each, ()) for each in before]
    pairs = zip(known, ledger.sources, strict=True)
    return Ledger(tuple(added(*pair) for pair in pairs)) if known else ledger
