"""A few steps of a configuration without a run directory: for proofs, which compare curves and keep nothing.

The same inputs, machine and loop as a run's; no checkpoint, no evaluation, no file but the cache of prepared rows.
What draws random numbers in a step is switched off, since a batch that is cut otherwise draws others.
"""

from __future__ import annotations

from dataclasses import dataclass

from sftctl.config.schema import Bundle
from sftctl.engine import assemble
from sftctl.engine.assemble_model import without_dropout
from sftctl.engine.memory.offloading import ActivationOffloading
from sftctl.engine.ranks import distributed
from sftctl.engine.training.loop import Progress, train_steps
from sftctl.records import StepReport


@dataclass(frozen=True, slots=True)
class Trial:
    """The reports of all steps, and what was at work in them.

    `fused`: the fused loss; `bytes_offloaded`: what offloading moved to the host, 0 where it is off or every tensor
    was too small for it; `dropout`: the rates that were set to 0, by their field.
    """

    reports: tuple[StepReport, ...]
    fused: bool
    bytes_offloaded: int
    dropout: dict[str, float]


def try_steps(bundle: Bundle, *, loss_chunk_size: int | None = None) -> Trial:
    """Train `train.max_steps` steps and forget them. `loss_chunk_size`: rows of logits that exist at a time.

    Raises children of SftctlError, as a run does.
    """
    ranks = assemble.ranks_of(bundle)
    tokenizer = assemble.tokenizer_of(bundle)
    bundle, dropout = without_dropout(bundle, tokenizer)
    inputs = assemble.inputs_of(bundle, tokenizer, world_size=ranks.world_size)
    machine = assemble.machine_of(bundle, inputs, ranks, loss_chunk_size=loss_chunk_size)
    distributed.seed_everything(bundle.run.seed + ranks.rank)
    steps = train_steps(
        machine.step,
        machine.batches_at,
        progress=Progress(),
        steps_per_epoch=inputs.steps_per_epoch,
        total_steps=inputs.total_steps,
        learning_rate_at=inputs.learning_rate_at,
    )
    reports = tuple(steps)
    offloading = machine.step.activations()
    moved = offloading.statistics.bytes_to_host if isinstance(offloading, ActivationOffloading) else 0
    return Trial(reports, fused=machine.head_report.fused, bytes_offloaded=moved, dropout=dropout)
