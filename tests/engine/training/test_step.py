"""The step divides once; the loop yields reports and holds nothing across a yield."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sftctl.engine.ranks.distributed import Ranks
from sftctl.engine.training.loop import Progress, train_steps
from sftctl.engine.training.losses import LossSums
from sftctl.engine.training.precision import Weights
from sftctl.engine.training.step import TrainStep
from sftctl.errors import TrainingError
from sftctl.records import IGNORE_INDEX, Batch

VOCAB = 7
ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


def batch_of(labels: Sequence[int], sample: int = 0) -> Batch:
    count = len(labels)
    return Batch(
        input_ids=np.arange(count)[None] % VOCAB,
        position_ids=np.arange(count)[None],
        labels=np.array([labels], dtype=np.int64),
        cu_seqlens=np.array([0, count], dtype=np.int32),
        weights=None,
        num_tokens=count,
        num_supervised=sum(label != IGNORE_INDEX for label in labels),
        samples=(sample,),
    )


class Toy:
    """Logits are a row of a table a token: small enough to check by hand."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCAB, VOCAB)
        self.weights = Weights(self.table.named_parameters(), compute_dtype=None)
        self.optimizer = torch.optim.SGD(self.weights.masters, lr=0.0)

    def forward(self, batch: Batch, scale: float) -> LossSums:
        logits_TV = self.table(torch.from_numpy(batch.input_ids[0]))
        labels_T = torch.from_numpy(batch.labels[0])
        loss = F.cross_entropy(logits_TV, labels_T, reduction="sum")
        correct = (logits_TV.argmax(1) == labels_T).sum()
        return LossSums(loss, correct.float(), torch.zeros(()), batch.num_supervised)

    def step(self, max_grad_norm: float | None = None) -> TrainStep:
        return TrainStep(self.forward, self.weights, self.optimizer, max_grad_norm=max_grad_norm, ranks=ALONE)


X = IGNORE_INDEX
LONG, SHORT = [1, 2, 3, 4, 5, X], [6, X, X]


def test_the_loss_is_the_mean_over_supervised_tokens_however_the_batch_is_cut() -> None:
    """Five targets in one micro-batch and one in the other: each of the six counts a sixth."""
    toy = Toy()
    totals = toy.step()([batch_of(LONG), batch_of(SHORT)], learning_rate=0.0)
    logits = torch.cat([toy.table(torch.arange(6)), toy.table(torch.arange(3))])
    expected = F.cross_entropy(logits, torch.tensor(LONG + SHORT))
    assert totals.loss == pytest.approx(expected.item(), rel=1e-6)
    assert (totals.num_tokens, totals.num_supervised) == (9, 6)
    (gradient,) = torch.autograd.grad(expected, toy.table.weight)
    assert toy.table.weight.grad is not None
    torch.testing.assert_close(toy.table.weight.grad, gradient)
    assert totals.grad_norm == pytest.approx(gradient.norm().item(), rel=1e-6)


def test_a_step_with_nothing_supervised_changes_nothing() -> None:
    toy = Toy()
    before = toy.table.weight.detach().clone()
    totals = toy.step(1.0)([batch_of([X, X])], learning_rate=1.0)
    assert (totals.loss, totals.grad_norm) == (0.0, 0.0)
    assert torch.equal(toy.table.weight, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(value: float) -> None:
    toy = Toy()
    with torch.no_grad():
        toy.table.weight[1] = value
    before = toy.table.weight.detach().clone()
    with pytest.raises(TrainingError, match=r"the loss is nan.*rows 3, 8\)"):
        toy.step(1.0)([batch_of(LONG, sample=8), batch_of(SHORT, sample=3)], learning_rate=1.0)
    assert torch.equal(toy.table.weight.nan_to_num(7.0), before.nan_to_num(7.0))


def test_clipping_bounds_the_update() -> None:
    toy = Toy()
    before = toy.table.weight.detach().clone()
    totals = toy.step(0.01)([batch_of(LONG)], learning_rate=1.0)
    assert totals.grad_norm > 0.01
    assert (toy.table.weight - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_loop_asks_for_each_batch_by_epoch_and_place() -> None:
    toy = Toy()
    asked: list[tuple[int, int]] = []

    def batches_at(epoch: int, within: int) -> list[Batch]:
        asked.append((epoch, within))
        return [batch_of(LONG)]

    progress = Progress(step=1, num_tokens=6, num_trained_tokens=5)
    reports = train_steps(
        toy.step(),
        batches_at,
        progress=progress,
        steps_per_epoch=2,
        total_steps=5,
        learning_rate_at=lambda step: 0.1 * step,
    )
    first = next(reports)
    assert (first.step, first.epoch, first.learning_rate, first.num_tokens) == (2, 1.0, 0.1, 12)
    assert (progress.step, progress.num_trained_tokens) == (2, 10)
    assert [report.step for report in reports] == [3, 4, 5]
    assert asked == [(0, 1), (1, 0), (1, 1), (2, 0)]
