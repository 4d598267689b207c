"""The floor under a tiny model's step: the same model as a bare loop of torch operators, without any trainer.

    python benchmarks/floor.py                       72, 128, 512 and 2,048 tokens a step, one thread
    python benchmarks/floor.py --torch-compile       forward and loss compiled whole, shapes static

The model and optimiser of `throughput.py --tiny`, written out: torch's own RMSNorm, scaled dot product attention,
cross entropy on every sixth position (as many as are supervised there), gradients clipped, AdamW fused. What a
trainer does beside that is left out: rows are random, of 128 tokens at most, each one document, and only the loss
is read. `products` are the matrix products of such a step alone, forward and backward, attention's left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCAB, HIDDEN, MLP, LAYERS, HEADS, KV_HEADS, HEAD = 260, 64, 176, 2, 4, 2, 16  # make_tiny's
LONGEST_ROW, SUPERVISED = 128, 6
WARMUP, STEPS = 20, 150


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.02 if len(shape) > 1 else torch.ones(*shape))


@dataclass
class Layer:
    norm: nn.Parameter = field(default_factory=lambda: weight(HIDDEN))
    query: nn.Parameter = field(default_factory=lambda: weight(HEADS * HEAD, HIDDEN))
    key: nn.Parameter = field(default_factory=lambda: weight(KV_HEADS * HEAD, HIDDEN))
    value: nn.Parameter = field(default_factory=lambda: weight(KV_HEADS * HEAD, HIDDEN))
    out: nn.Parameter = field(default_factory=lambda: weight(HIDDEN, HEADS * HEAD))
    mlp_norm: nn.Parameter = field(default_factory=lambda: weight(HIDDEN))
    gate: nn.Parameter = field(default_factory=lambda: weight(MLP, HIDDEN))
    up: nn.Parameter = field(default_factory=lambda: weight(MLP, HIDDEN))
    down: nn.Parameter = field(default_factory=lambda: weight(HIDDEN, MLP))


class Bare:
    """Weights, and the loss of a batch of rows [B, L]."""

    def __init__(self) -> None:
        self.embedding, self.head, self.norm = weight(VOCAB, HIDDEN), weight(VOCAB, HIDDEN), weight(HIDDEN)
        self.layers = [Layer() for _ in range(LAYERS)]

    def parameters(self) -> list[nn.Parameter]:
        return [self.embedding, self.head, self.norm, *chain(*(vars(layer).values() for layer in self.layers))]

    def loss(self, ids: Tensor, labels: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        hidden = functional.embedding(ids, self.embedding)
        for layer in self.layers:
            hidden = hidden + self.attention(layer, normed(hidden, layer.norm), cosine, sine)
            x = normed(hidden, layer.mlp_norm)
            gated = functional.silu(functional.linear(x, layer.gate)) * functional.linear(x, layer.up)
            hidden = hidden + functional.linear(gated, layer.down)
        last = normed(hidden, self.norm).flatten(0, 1)[::SUPERVISED]
        return functional.cross_entropy(functional.linear(last, self.head), labels.flatten()[::SUPERVISED])

    def attention(self, layer: Layer, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        query, key, value = (
            functional.linear(x, each).view(*x.shape[:2], -1, HEAD).transpose(1, 2)
            for each in (layer.query, layer.key, layer.value)
        )
        query, key = (rotated(each, cosine, sine) for each in (query, key))
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return functional.linear(out.transpose(1, 2).flatten(2), layer.out)


def normed(x: Tensor, scale: Tensor) -> Tensor:
    return functional.rms_norm(x, (HIDDEN,), scale, 1e-6)


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cosine + torch.cat((-right, left), -1) * sine


def median_ms(step: Callable[[], object]) -> float:
    seconds = []
    for _ in range(WARMUP + STEPS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[WARMUP:])


def bare_ms(num_tokens: int, *, compiled: bool) -> float:
    """Milliseconds of a step."""
    model, length = Bare(), min(num_tokens, LONGEST_ROW)
    parameters = model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    ids, labels = torch.randint(VOCAB, (2, num_tokens // length, length))
    cosine, sine = torch.randn(2, length, HEAD)
    loss_of = torch.compile(model.loss, dynamic=False) if compiled else model.loss

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(ids, labels, cosine, sine)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.item()

    return median_ms(step)


def products_ms(num_tokens: int) -> float:
    """Milliseconds of each weight's three products."""
    matrices = [p.detach() for p in Bare().parameters() if p.ndim == 2][1:]  # an embedding is looked up
    counts = [num_tokens // SUPERVISED, *[num_tokens] * (len(matrices) - 1)]  # the head comes first
    sides = [
        (matrix, torch.randn(count, matrix.shape[1]), torch.randn(count, matrix.shape[0]))
        for matrix, count in zip(matrices, counts, strict=True)
    ]

    def step() -> None:
        for matrix, x, grad in sides:
            torch.mm(x, matrix.T)
            torch.mm(grad, matrix)
            torch.mm(grad.T, x)

    return median_ms(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[72, 128, 512, 2048], help="a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--torch-compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, torch {torch.__version__}" + (", compiled" if options.torch_compile else ""))
    print("| tokens a step | products, ms | bare loop, ms |\n|---:|---:|---:|")
    for num_tokens in options.tokens:
        bare = bare_ms(num_tokens, compiled=options.torch_compile)
        print(f"| {num_tokens:,} | {products_ms(num_tokens):.2f} | {bare:.2f} |", flush=True)


if __name__ == "__main__":
    main()
