"""`sftctl verify equivalence FILE…`: a few steps of a configuration, cut and laid out in every other way, compared.

Each variant has a process of its own, so nothing can be carried over in memory, and one that runs out of it does
not end the others. They train without a run directory; their curves come back through a temporary folder.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sftctl.cli.command import Command
from sftctl.cli.files import FILES
from sftctl.cli.options import Invocation
from sftctl.cli.resolving import apply_environment, resolve_invocation
from sftctl.cli.runner import run_apart
from sftctl.cli.switches import Example, Switch, Usage
from sftctl.cli.terminal import has_colour, styled, text_table, write
from sftctl.cli.verify.curves import MAX_DRIFT, MAX_GRAD_NORM, MAX_LOSS, Curve, Difference, difference, same_tokens
from sftctl.cli.verify.steps import steps_of
from sftctl.cli.verify.variants import Variant, common, variants
from sftctl.config.python import evolve
from sftctl.config.rules import ready
from sftctl.config.schema import Bundle
from sftctl.errors import ConfigError, Interrupted, Problem, SftctlError, TrainingError

DIFFERENT = 1
DEFAULT_STEPS = 6
RECORDED = ("step", "loss", "grad_norm", "mean_token_accuracy", "entropy", "num_tokens", "num_trained_tokens")
MOVES = 1e-3
"""A base run whose loss changes by a smaller share proves the gradients, and little about what follows from them."""

USAGE = Usage(
    summary="Prove that a batch trains the same however it is cut, laid out and stored.",
    about=(
        "A few steps of your model on your data, again for each other micro-batch, layout, kind of checkpointing, "
        "offloading, loss chunk and number of processes. Every step's loss must be the same within 1e-5, its "
        "gradient norm within 1e-4, and the losses must not drift apart. All runs compute in float32 without "
        "dropout. Nothing is kept but prepared rows in the cache."
    ),
    words=FILES,
    switches=(
        Switch("steps", f"Length of each run. [{DEFAULT_STEPS}]", value="STEPS"),
        Switch("only", "Run the variants that have TEXT in their name. Again for more.", value="TEXT", many=True),
        Switch("format", "How it is written. [table]", choices=("table", "json")),
    ),
    examples=(
        Example("sftctl verify equivalence run.toml", "Six steps of each variant:"),
        Example("sftctl verify equivalence run.toml --steps 20 --packing", "Longer, with a setting changed:"),
    ),
    takes_leaves=True,
)


class Outcome(NamedTuple):
    """What came of a variant: its curve and how far it is from its base, or why there is none."""

    variant: Variant
    curve: Curve = ()
    found: Difference | None = None
    fused: bool = True
    dropout: Mapping[str, float] = {}
    idle: str = ""
    cannot: str = ""
    failed: str = ""

    @property
    def verdict(self) -> str:
        if self.cannot:
            return "not comparable"
        if self.failed:
            return "FAILED"
        if self.found is None:
            return "base"
        return "same" if self.found.passed else "DIFFERENT"


def run(invocation: Invocation) -> int:
    steps = steps_of(invocation, "steps", DEFAULT_STEPS)
    resolved = resolve_invocation(invocation)
    if missing := ready(resolved.facts):
        raise ConfigError(*missing)
    apply_environment(resolved)
    bundle = evolve(resolved.bundle, common(resolved.bundle, steps=steps))
    planned = _chosen(list(variants(bundle)), invocation.texts("only"))
    as_json = invocation.text("format", "table") == "json"
    with tempfile.TemporaryDirectory(prefix="sftctl-verify-") as folder:
        outcomes = list(_outcomes(bundle, planned, Path(folder), quiet=as_json))
    write(_as_json(outcomes, steps) if as_json else "\n".join(_as_lines(outcomes, steps)))
    return 0 if _compared_alike(outcomes) else DIFFERENT


def _chosen(planned: Sequence[Variant], texts: Sequence[str]) -> list[Variant]:
    """Those that were asked for, and the runs that they are held against."""
    wanted = [each for each in planned if not texts or any(text in each.name for text in texts)]
    if not any(each.against for each in wanted):
        names = ", ".join(each.name for each in planned if each.against)
        raise ConfigError(Problem("", f"--only {texts[-1]}: no such variant", help=f"one of {names}"))
    bases = {each.against for each in wanted}
    return [each for each in planned if each in wanted or each.name in bases]


# ---------------------------------------------------------------------- running


def _outcomes(bundle: Bundle, planned: Sequence[Variant], folder: Path, *, quiet: bool) -> Iterator[Outcome]:
    bases: dict[str, Outcome] = {}
    for number, variant in enumerate(planned, start=1):
        title = styled(f"run {number} of {len(planned)}", "bold", colour=has_colour(sys.stderr))
        if not quiet:
            write(f"{title}: {variant.name}", stream=sys.stderr)
        outcome = _outcome(bundle, variant, bases.get(variant.against), folder / f"{number}.json")
        if not variant.against:
            bases[variant.name] = outcome
        yield outcome


def _outcome(bundle: Bundle, variant: Variant, base: Outcome | None, file: Path) -> Outcome:
    """Run a variant and compare it. Raises TrainingError where one that others are held against does not run."""
    cannot = variant.cannot
    if variant.loss_chunk_size and base is not None and not base.fused:
        cannot = "the loss of this model is computed from whole logits"
    if cannot:
        return Outcome(variant, cannot=cannot)
    try:
        changed = evolve(bundle, variant.changes)
    except ConfigError as error:
        return Outcome(variant, cannot=_reason(error))
    ended = run_apart(partial(_try, changed, variant.loss_chunk_size, file))
    if ended.stopped:
        raise Interrupted(Problem("", "by you: nothing was proven"))
    said = {"failed": ended.problem} if ended.problem else json.loads(file.read_text(encoding="utf-8"))
    outcome = Outcome(variant, **said)
    if base is not None:
        return _compared(outcome, base) if outcome.curve else outcome
    if not outcome.curve:
        message = f"{variant.name}: {outcome.failed or outcome.cannot}"
        raise TrainingError(Problem("", message, help="'sftctl train' with these files says more"))
    return outcome


def _try(bundle: Bundle, loss_chunk_size: int | None, file: Path) -> None:
    """In a process of its own: train, and leave in `file` what came of it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from sftctl.engine.ranks.launch import in_ranks  # torch: in the child alone
    from sftctl.engine.trial import try_steps

    said: dict[str, Any]
    try:
        trial = in_ranks(bundle.distributed, partial(try_steps, bundle, loss_chunk_size=loss_chunk_size))
    except TrainingError as error:
        said = {"failed": _reason(error)}
    except SftctlError as error:  # refused before the first step
        said = {"cannot": _reason(error)}
    else:
        assert trial is not None, "one machine: rank 0 is here"
        curve = [{name: getattr(report, name) for name in RECORDED} for report in trial.reports]
        said = {"curve": curve, "fused": trial.fused, "dropout": trial.dropout}
        if bundle.sft.activation_offloading and not trial.bytes_offloaded:
            said["idle"] = "no tensor of these batches is large enough to be moved"
    file.write_text(json.dumps(said), encoding="utf-8")


def _reason(error: SftctlError) -> str:
    return error.problems[0].message


def _compared(outcome: Outcome, base: Outcome) -> Outcome:
    if not same_tokens(outcome.curve, base.curve):
        return outcome._replace(failed="its steps train another number of tokens")
    if outcome.idle and outcome.variant.changes.get("sft.activation_offloading"):
        return outcome._replace(cannot=outcome.idle)
    return outcome._replace(found=difference(outcome.curve, base.curve))


# ---------------------------------------------------------------------- telling


def _as_lines(outcomes: Sequence[Outcome], steps: int) -> Iterator[str]:
    head = ("variant", ">loss", ">loss differs", ">gradient norm", ">drift", "")
    yield from text_table(head, [_row(each) for each in outcomes], colour=has_colour(sys.stdout))
    yield ""
    base = outcomes[0].curve
    yield (
        f"{steps} steps; loss: of the last; differs: the largest of all steps, relative; "
        f"allowed: loss {MAX_LOSS:g}, gradient norm {MAX_GRAD_NORM:g}, drift {MAX_DRIFT:g}"
    )
    if outcomes[0].dropout:
        names = ", ".join(f"{name} = {rate:g}" for name, rate in outcomes[0].dropout.items())
        yield f"note: set to 0 for these runs, since another cut draws other random numbers: {names}"
    if abs(base[-1]["loss"] - base[0]["loss"]) <= MOVES * abs(base[0]["loss"]):
        yield "note: the loss hardly moved in these steps: give more --steps, or a larger --learning-rate"
    for each in outcomes:
        if reason := each.cannot or each.failed:
            yield f"{each.verdict}: {each.variant.name}: {reason}"
    yield _verdict(outcomes)


def _row(outcome: Outcome) -> tuple[str, ...]:
    loss = f"{outcome.curve[-1]['loss']:.6f}" if outcome.curve else "-"
    found = outcome.found
    figures = ("-",) * 3 if found is None else (f"{found.loss:.1e}", f"{found.grad_norm:.1e}", f"{found.drift:+.1e}")
    return (outcome.variant.name, loss, *figures, outcome.verdict)


def _verdicts(outcomes: Sequence[Outcome]) -> list[str]:
    return [each.verdict for each in outcomes if each.variant.against and not each.cannot]


def _compared_alike(outcomes: Sequence[Outcome]) -> bool:
    """Whether something was compared, and all of it is the same: nothing compared proves nothing."""
    return set(_verdicts(outcomes)) == {"same"}


def _verdict(outcomes: Sequence[Outcome]) -> str:
    verdicts = _verdicts(outcomes)
    same = verdicts.count("same")
    if not verdicts:
        return "no variant could be compared: nothing is proven"
    if same == len(verdicts):
        return f"all {same} variants train the same"
    return (
        f"{len(verdicts) - same} of {len(verdicts)} variants do not train the same: please report it, with this table"
    )


def _as_json(outcomes: Sequence[Outcome], steps: int) -> str:
    allowed = {"loss": MAX_LOSS, "grad_norm": MAX_GRAD_NORM, "drift": MAX_DRIFT}
    runs = [
        {
            "variant": each.variant.name,
            "against": each.variant.against or None,
            "verdict": each.verdict,
            "reason": each.cannot or each.failed or None,
            "differs": None if each.found is None else each.found._asdict(),
            "curve": each.curve,
        }
        for each in outcomes
    ]
    return json.dumps({"steps": steps, "allowed": allowed, "dropout": outcomes[0].dropout, "runs": runs}, indent=2)


command = Command("equivalence", USAGE, run)
