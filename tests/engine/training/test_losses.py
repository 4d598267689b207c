"""The fused loss against the obvious one: whole logits, softmax, autograd, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sftctl.config.schema import Sft
from sftctl.engine.training.losses import (
    LOSSES,
    GradSink,
    LossSums,
    even_chunk_size,
    linear_cross_entropy,
    logits_loss,
)
from sftctl.records import IGNORE_INDEX


@dataclass
class PlainHead:
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, hidden: Tensor) -> Tensor:
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias) * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    @property
    def tensors(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]


@dataclass
class Problem:
    """A random micro-batch and head."""

    hidden: Tensor
    head: PlainHead
    labels: Tensor
    weights: Tensor | None
    loss_type: str

    @property
    def inputs(self) -> list[Tensor]:
        return [self.hidden, *self.head.tensors]


def make_problem(
    num_tokens: int = 30,
    num_vocab: int = 50,
    num_dims: int = 8,
    *,
    supervised: float = 0.6,
    bias: bool = False,
    weighted: bool = False,
    softcap: float | None = None,
    scale: float = 1.0,
    loss_type: str = "nll",
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(num_vocab, (num_tokens,), generator=generator)
    kept = torch.rand(num_tokens, generator=generator) < supervised
    return Problem(
        hidden=normal(num_tokens, num_dims),
        head=PlainHead(normal(num_vocab, num_dims), normal(num_vocab) if bias else None, softcap, scale),
        labels=torch.where(kept, targets, IGNORE_INDEX),
        weights=torch.rand(num_tokens, generator=generator) if weighted else None,
        loss_type=loss_type,
    )


def in_float64(problem: Problem) -> Problem:
    """The same numbers, exactly, in float64 leaves."""

    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().double().requires_grad_()

    head = replace(problem.head, weight=leaf(problem.head.weight), bias=leaf(problem.head.bias))
    return replace(problem, hidden=leaf(problem.hidden), head=head)


def reference(problem: Problem) -> LossSums:
    """Every formula as it is written in the paper or the design, over whole logits."""
    kept = problem.labels != IGNORE_INDEX
    logits, targets = problem.head.logits(problem.hidden)[kept], problem.labels[kept]
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    token_weights = torch.ones_like(nll) if problem.weights is None else problem.weights[kept]
    loss_weights = {"nll": torch.ones_like(nll), "dft": torch.exp(-nll).detach()}[problem.loss_type]
    probs = logits.softmax(-1)
    largest = (logits == logits.amax(-1, keepdim=True)).to(logits.dtype)
    correct = largest[torch.arange(len(targets)), targets] / largest.sum(-1)
    return LossSums(
        loss=(token_weights * loss_weights * nll).sum(),
        num_correct=correct.sum(),
        entropy=torch.special.entr(probs).sum(),
        count=len(targets),
    )


def fused(problem: Problem, **options: Any) -> LossSums:
    return linear_cross_entropy(
        problem.hidden, problem.head, problem.labels, problem.weights, loss_type=problem.loss_type, **options
    )


def from_logits(problem: Problem) -> LossSums:
    logits = problem.head.logits(problem.hidden)
    return logits_loss(logits, problem.labels, problem.weights, loss_type=problem.loss_type)


def gradients(sums: LossSums, problem: Problem, factor: float = 1 / 7) -> list[Tensor]:
    return list(torch.autograd.grad(sums.loss * factor, problem.inputs))


def assert_same(actual: LossSums, expected: LossSums, **tolerance: float) -> None:
    assert actual.count == expected.count
    for name in ("loss", "num_correct", "entropy"):
        torch.testing.assert_close(
            getattr(actual, name).double(),
            getattr(expected, name).double(),
            **tolerance,
            msg=lambda m, n=name: f"{n}: {m}",
        )


random_problems = st.builds(
    make_problem,
    st.integers(1, 40),
    st.integers(2, 90),
    st.integers(1, 24),
    supervised=st.floats(0, 1),
    bias=st.booleans(),
    weighted=st.booleans(),
    softcap=st.none() | st.floats(1, 30),
    scale=st.sampled_from([1.0, 0.0625, 1.7]),
    loss_type=st.sampled_from(sorted(LOSSES)),
    seed=st.integers(0, 2**31),
)


# A soft-cap that saturates: three logits share the largest value, and a third is counted.
TIED = make_problem(16, 44, 24, supervised=1.0, softcap=1.0, scale=1.7)


class TestAgainstWholeLogits:
    @given(random_problems, st.none() | st.integers(1, 45))
    @example(TIED, None)
    @settings(deadline=None, max_examples=200)
    def test_fused(self, problem: Problem, chunk_size: int | None) -> None:
        """Whatever the shapes, mask, chunks, head and loss: the same sums and the same gradients."""
        expected, actual = reference(problem), fused(problem, chunk_size=chunk_size)
        assert_same(actual, expected, rtol=1e-10, atol=1e-10)
        for got, want in zip(gradients(actual, problem), gradients(expected, problem), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)

    @given(random_problems)
    @example(TIED)
    @settings(deadline=None, max_examples=50)
    def test_fallback(self, problem: Problem) -> None:
        """The loss from a model's own logits is the same loss."""
        expected, actual = reference(problem), from_logits(problem)
        assert_same(actual, expected, rtol=1e-10, atol=1e-10)
        for got, want in zip(gradients(actual, problem), gradients(expected, problem), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("loss_type", sorted(LOSSES))
    @pytest.mark.parametrize(
        ("dtype", "loss_error", "gradient_error"),
        [(torch.float32, 1e-6, 1e-5), (torch.bfloat16, 3e-3, 1e-2), (torch.float16, 1e-3, 2e-3)],
    )
    def test_lower_precision(
        self, loss_type: str, dtype: torch.dtype, loss_error: float, gradient_error: float
    ) -> None:
        """float32 within 1e-6 (loss) and 1e-5 (gradients) of float64; 16 bits within their own rounding."""
        problem = make_problem(200, 300, 32, bias=True, weighted=True, scale=0.25, loss_type=loss_type, dtype=dtype)
        exact = in_float64(problem)
        expected, actual = reference(exact), fused(problem, chunk_size=48)
        assert actual.loss.dtype is torch.float32
        assert_same(actual, expected, rtol=loss_error, atol=0 if dtype is torch.float32 else 1.0)
        for got, want in zip(gradients(actual, problem), gradients(expected, exact), strict=True):
            assert got.dtype is dtype
            assert float((got.double() - want).norm() / want.norm()) < gradient_error

    def test_a_target_of_probability_one_still_has_its_small_gradient(self) -> None:
        """p - 1 is rounded once, from float32: a bf16 softmax would round p = 0.999 to 1 and the gradient to 0."""
        hidden = torch.tensor([[1.0]], dtype=torch.bfloat16, requires_grad=True)
        weight = torch.tensor([[7.0], [0.0]], dtype=torch.bfloat16, requires_grad=True)
        fused(Problem(hidden, PlainHead(weight), torch.tensor([0]), None, "nll")).loss.backward()
        assert float(weight.grad[0]) == pytest.approx(-1 / (1 + torch.e**7), rel=0.01)

    def test_vanishing_probabilities_stay_finite(self) -> None:
        """log p comes from the log-sum-exp, not from a p that has underflowed."""
        problem = make_problem(20, 30, 4, scale=200.0, dtype=torch.float32)
        sums = fused(problem)
        assert sums.loss.item() > 88 * sums.count  # beyond the smallest normal probability of float32, e^-87
        assert_same(sums, reference(in_float64(problem)), rtol=1e-5, atol=1e-3)
        for loss_type in LOSSES:
            other = replace(problem, loss_type=loss_type)
            assert all(gradient.isfinite().all() for gradient in gradients(fused(other), other))

    @pytest.mark.parametrize("softcap", [None, 5.0])
    def test_gradcheck_of_the_weighted_form(self, softcap: float | None) -> None:
        """Numerical differentiation agrees; it cannot see a detached weight, so that weight comes as data."""
        problem = make_problem(7, 9, 3, bias=True, weighted=True, softcap=softcap, scale=0.7)

        def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            head = replace(problem.head, weight=weight, bias=bias)
            return fused(replace(problem, hidden=hidden, head=head), chunk_size=3).loss

        assert torch.autograd.gradcheck(loss, problem.inputs)

    def test_dft_is_nll_weighted_by_probability(self) -> None:
        """The design's one decision about losses: w·sg(p)·nll has the value and gradient of nll with weight w·p."""
        problem = make_problem(weighted=True, loss_type="dft")
        log_probs = problem.head.logits(problem.hidden).log_softmax(-1).detach()
        probs = log_probs.gather(1, problem.labels.clamp(min=0).unsqueeze(1)).exp().squeeze(1)
        as_nll = replace(problem, loss_type="nll", weights=problem.weights * probs)
        dft_sums, nll_sums = fused(problem), fused(as_nll)
        torch.testing.assert_close(dft_sums.loss, nll_sums.loss)
        torch.testing.assert_close(gradients(dft_sums, problem), gradients(nll_sums, as_nll))


class TestSums:
    @given(random_problems, st.integers(0, 40))
    @settings(deadline=None, max_examples=30)
    def test_parts_add_up_to_the_whole(self, problem: Problem, cut: int) -> None:
        """Sums, never means: a batch cut in two gives the same totals, though a part may have no target."""
        whole = fused(problem)
        parts = [
            fused(
                replace(
                    problem,
                    hidden=problem.hidden[part],
                    labels=problem.labels[part],
                    weights=None if problem.weights is None else problem.weights[part],
                )
            )
            for part in (slice(None, cut), slice(cut, None))
        ]
        for name in ("loss", "num_correct", "entropy", "count"):
            total = sum(getattr(part, name) for part in parts)
            torch.testing.assert_close(torch.as_tensor(total), torch.as_tensor(getattr(whole, name)))

    @pytest.mark.parametrize("compute", [fused, from_logits])
    @pytest.mark.parametrize("loss_type", sorted(LOSSES))
    def test_nothing_supervised_is_zero_and_in_the_graph(
        self, compute: Callable[[Problem], LossSums], loss_type: str
    ) -> None:
        problem = make_problem(supervised=0, bias=True, loss_type=loss_type)
        sums = compute(problem)
        assert (sums.loss.item(), sums.num_correct.item(), sums.entropy.item(), sums.count) == (0, 0, 0, 0)
        for gradient, tensor in zip(gradients(sums, problem), problem.inputs, strict=True):
            torch.testing.assert_close(gradient, torch.zeros_like(tensor))

    @pytest.mark.parametrize("compute", [fused, from_logits])
    def test_a_shared_largest_logit_is_shared_credit(self, compute: Callable[[Problem], LossSums]) -> None:
        """A head of zeros is right once in V, not always; bf16 logits tie often enough to matter."""
        problem = make_problem(40, 8, 4, supervised=1)
        problem.head.weight.detach().zero_()
        assert compute(problem).num_correct.item() == pytest.approx(40 / 8)

    def test_known_positions_and_leading_dimensions(self) -> None:
        problem = make_problem(30)
        rows = replace(problem, hidden=problem.hidden.view(2, 15, -1), labels=problem.labels.view(2, 15))
        positions = (problem.labels != IGNORE_INDEX).nonzero().squeeze(1)
        assert_same(fused(rows, positions_S=positions), fused(problem), rtol=0, atol=0)


class TestWhatIsNotComputed:
    def test_a_frozen_head_costs_nothing_of_its_size(self) -> None:
        problem = make_problem(30, 500, 8)
        problem.head.weight.requires_grad_(False)
        with Watch() as watch:
            fused(problem, chunk_size=10).loss.backward()
        assert problem.head.weight.grad is None
        assert watch.calls["mm"] == 2 * -(-int((problem.labels >= 0).sum()) // 10)  # logits and hidden gradient
        assert (500, 8) not in watch.shapes

    def test_a_frozen_backbone_has_no_hidden_gradient(self) -> None:
        problem = make_problem()
        expected = gradients(reference(problem), problem, 1)[1]
        problem.hidden = problem.hidden.detach()
        fused(problem).loss.backward()
        torch.testing.assert_close(problem.head.weight.grad, expected)

    def test_evaluation_makes_logits_only(self) -> None:
        problem = make_problem(30, 50, 8, bias=True)
        with torch.no_grad(), Watch() as watch:
            sums = fused(problem, chunk_size=100)
        assert not sums.loss.requires_grad
        assert watch.calls["mm"] == 1
        assert_same(sums, reference(problem))

    @pytest.mark.parametrize("num_tokens", [64, 1024])
    def test_no_tensor_grows_with_tokens_times_vocabulary(self, num_tokens: int) -> None:
        """The largest tensor of forward and backward is a chunk of logits or a head, whatever the tokens."""
        num_vocab, num_dims, chunk_size = 4000, 4, 16
        problem = make_problem(num_tokens, num_vocab, num_dims, supervised=1, dtype=torch.float32)
        with Watch() as watch:
            fused(problem, chunk_size=chunk_size).loss.backward()
        assert watch.largest == chunk_size * num_vocab

    def test_the_default_chunk_keeps_to_its_budget_of_bytes(self) -> None:
        problem = make_problem(100, 2**19, 1, supervised=1, dtype=torch.bfloat16)
        problem.head.weight.requires_grad_(False)
        with Watch() as watch:
            fused(problem)
        assert watch.largest == 50 * 2**19  # 64 MiB hold 64 rows; two even chunks of 50

    @pytest.mark.parametrize(
        ("count", "max_rows", "size"), [(1100, 682, 550), (0, 9, 1), (5, 1, 1), (5, 0, 1), (6, 6, 6), (7, 6, 4)]
    )
    def test_chunks_are_few_and_even(self, count: int, max_rows: int, size: int) -> None:
        assert even_chunk_size(count, max_rows=max_rows) == size


class TestPrecision:
    def test_autocast_decides_the_dtype_of_the_logits(self) -> None:
        """float32 hidden states and head under autocast give what their bf16 copies give, and float32 gradients."""
        problem = make_problem(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            sums = fused(problem)
        rounded = make_problem(dtype=torch.bfloat16)
        assert_same(sums, fused(rounded), rtol=0, atol=0)
        grads = gradients(sums, problem)
        assert [grad.dtype for grad in grads] == [torch.float32, torch.float32]
        exact = in_float64(rounded)
        for got, want in zip(grads, gradients(reference(exact), exact), strict=True):
            assert float((got.double() - want).norm() / want.norm()) < 1e-2

    def test_the_head_gradient_accumulates_in_float32(self) -> None:
        """4,096 equal tokens in 64 chunks: a bf16 sum would stop growing at 256 times one chunk's part."""
        hidden = torch.ones(4096, 1, dtype=torch.bfloat16)
        weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.zeros(4096, dtype=torch.int64)
        sink = GradSink(torch.zeros(2, 1), scale=1.0)
        linear_cross_entropy(hidden, PlainHead(weight), labels, chunk_size=1, grad_sink=sink)
        torch.testing.assert_close(sink.buffer, torch.tensor([[-2048.0], [2048.0]]))


class TestGradSink:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_takes_the_scaled_gradient_instead_of_autograd(self, dtype: torch.dtype) -> None:
        """Two micro-batches add up in the buffer; the weight's own .grad stays empty, hidden's is as ever."""
        problem = make_problem(200, 300, 16, dtype=dtype)
        exact = in_float64(problem)
        hidden_grad, weight_grad = gradients(reference(exact), exact)
        sink = GradSink(torch.zeros(300, 16), scale=1 / 7)
        for _ in range(2):
            (fused(problem, chunk_size=50, grad_sink=sink).loss / 7).backward()
        assert problem.head.weight.grad is None
        for got, want in ((sink.buffer, 2 * weight_grad), (problem.hidden.grad, 2 * hidden_grad)):
            assert float((got.double() - want).norm() / want.norm()) < (1e-6 if dtype is torch.float32 else 1e-2)

    def test_a_tied_embedding_adds_its_own_part(self) -> None:
        """hidden = embedding[ids]: the buffer's part and autograd's part are together the whole gradient."""
        ids, labels = torch.tensor([0, 2, 1, 2]), torch.tensor([1, 1, IGNORE_INDEX, 0])
        weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        whole = Problem(weight[ids], PlainHead(weight), labels, None, "nll")
        (expected,) = torch.autograd.grad(reference(whole).loss / 3, weight)
        sink = GradSink(torch.zeros(5, 3, dtype=torch.float64), scale=1 / 3)
        (fused(replace(whole, hidden=weight[ids]), grad_sink=sink).loss / 3).backward()
        torch.testing.assert_close(sink.buffer + weight.grad, expected)

    def test_a_broken_promise_is_noticed(self) -> None:
        problem = make_problem()
        sums = fused(problem, grad_sink=GradSink(torch.zeros(50, 8, dtype=torch.float64), scale=1 / 7))
        with pytest.raises(AssertionError):
            (sums.loss / 8).backward()

    def test_evaluation_leaves_it_alone(self) -> None:
        sink = GradSink(torch.zeros(50, 8, dtype=torch.float64), scale=1.0)
        with torch.no_grad():
            fused(make_problem(), grad_sink=sink)
        assert not sink.buffer.any()


class TestBackward:
    def test_twice_with_a_kept_graph(self) -> None:
        problem = make_problem(bias=True)
        expected = gradients(reference(problem), problem, 1)
        loss = fused(problem).loss
        loss.backward(retain_graph=True)
        loss.backward()
        for tensor, once in zip(problem.inputs, expected, strict=True):
            torch.testing.assert_close(tensor.grad, 2 * once)

    def test_twice_without_one_is_refused(self) -> None:
        loss = fused(make_problem()).loss
        loss.backward()
        with pytest.raises(RuntimeError, match="retain_graph=True"):
            loss.backward()

    def test_nothing_is_left_to_saved_tensor_hooks(self) -> None:
        """Activation offloading around the loss finds nothing to move."""
        seen: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: seen.append(tensor) or tensor, lambda t: t):
            sums = fused(make_problem(bias=True, weighted=True))
        assert sums.loss.requires_grad
        assert seen == []


def test_schema_names_the_rows_of_the_table() -> None:
    assert set(get_args(get_type_hints(Sft)["loss_type"])) == set(LOSSES)


class Watch(TorchDispatchMode):
    """Counts operations and notes the shapes of what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.shapes: set[tuple[int, ...]] = set()

    @property
    def largest(self) -> int:
        return max(int(torch.Size(shape).numel()) for shape in self.shapes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        outputs = result if isinstance(result, tuple | list) else (result,)
        views = name in {"t", "transpose", "detach", "alias", "slice", "view", "unsqueeze", "squeeze"}
        self.shapes |= {tuple(out.shape) for out in outputs if isinstance(out, Tensor) and not views}
        return result
