"""`sftctl verify equivalence`: it shows that every variant trains the same, and finds an engine where one does not."""

from __future__ import annotations

import json

import pytest

from sftctl.cli.verify.curves import difference, same_tokens


@pytest.fixture
def verify(launcher, config, tmp_path, monkeypatch):
    """`sftctl verify equivalence faults.toml OPTIONS`: the exit code and what was said."""

    def run(*options, patch=""):
        words = ["verify", "equivalence", str(config), "--output-dir", str(tmp_path / "runs"), *options]
        return launcher.run(*words, patch=patch)

    return run


def test_every_variant_trains_the_same(verify, tmp_path):
    """The whole table, on a packed configuration with dropout and an evaluation; its own folder stays empty."""
    code, said = verify()
    assert code == 0, said
    assert "all 13 variants train the same" in said
    for name in ("micro-batches of 1, 6 a step", "padded", "full checkpointing", "2 processes, fsdp", "packed, padded"):
        assert name in said
    assert "not comparable: offloading: no tensor of these batches is large enough to be moved" in said
    assert "another cut draws other random numbers: attention_dropout = 0.1" in said
    assert "the loss hardly moved" not in said
    assert list(tmp_path.iterdir()) == [], "nothing is written in the configuration's own folder"


def test_the_table_for_a_program(verify):
    code, said = verify("--format=json", "--only=of 1,", "--steps=3")
    found = json.loads(said)
    assert code == 0
    assert found["steps"] == 3
    base, cut = found["runs"]
    assert (base["against"], cut["against"], cut["verdict"]) == (None, "as configured", "same")
    assert 0 < cut["differs"]["loss"] < found["allowed"]["loss"]
    assert [each["step"] for each in cut["curve"]] == [1, 2, 3]


MEAN_OF_MEANS = """
import sftctl.engine.training.step as module
accumulate = module.TrainStep._accumulate
module.TrainStep._accumulate = lambda self, batch, share: accumulate(self, batch, 0.5 / batch.num_supervised)
"""
"""The oldest of such mistakes: each micro-batch divided by its own number of tokens."""


CHECKPOINTING_LOSES_GRADIENT = """
import sftctl.engine.assemble as module
def wrong(model, mode):
    if mode is True:
        model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * 1.001)
module.set_gradient_checkpointing = wrong
"""


@pytest.mark.parametrize(
    ("patch", "variant"),
    [(MEAN_OF_MEANS, "micro-batches of 6"), (CHECKPOINTING_LOSES_GRADIENT, "full checkpointing")],
    ids=["mean of means", "a gradient that is wrong by a thousandth"],
)
def test_an_engine_that_breaks_the_promise_is_found(verify, patch, variant):
    code, said = verify(f"--only={variant}", "--steps=4", patch=patch)
    assert code == 1, said
    assert "DIFFERENT" in said
    assert "1 of 1 variants do not train the same" in said


def test_a_variant_that_the_model_refuses_is_said_with_its_reason(verify):
    """A model whose state crosses documents cannot be packed; what can be compared still is."""
    model = "model.architecture={model_type='mamba', hidden_size=32, state_size=4, num_hidden_layers=2}"
    options = ["--no-packing", "--set", model, "--per-device-train-batch-size=2", "--steps=2"]
    code, said = verify(*options, "--only=all rows", "--only=of 1,")
    assert code == 0, said
    assert "not comparable: all rows in one step: packed: documents that share a row of this model see each" in said
    assert "all 1 variants train the same" in said


def test_a_variant_that_fails_is_no_proof(verify):
    patch = """
import sftctl.engine.assemble as module
def wrong(model, mode):
    if mode is True:
        raise RuntimeError("out of order")
module.set_gradient_checkpointing = wrong
"""
    code, said = verify("--only=full checkpointing", "--steps=1", patch=patch)
    assert code == 1
    assert "FAILED: full checkpointing: a bug of ours: RuntimeError: out of order" in said


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--steps=0"], 2, "--steps 0: not a number of steps"),
        (["--only=sideways"], 2, "--only sideways: no such variant"),
        (["--learning-rate=fast"], 2, "optim.learning_rate"),
        (["--learning-rate=1e30", "--only=padded"], 1, "as configured: the loss is"),
        (["--only=offloading", "--steps=1"], 1, "no variant could be compared: nothing is proven"),
    ],
)
def test_what_cannot_be_proven_is_said(verify, options, code, message):
    got, said = verify(*options)
    assert got == code
    assert message in said
    assert "Traceback" not in said
    assert "train the same" not in said


def curve(*losses, norm=1.0):
    return [{"loss": loss, "grad_norm": norm, "num_trained_tokens": 10 * n} for n, loss in enumerate(losses, 1)]


def test_a_drift_is_found_that_no_single_step_shows():
    """Ten steps off by 3e-6 the same way drift, the same size to and fro does not."""
    expected = curve(*[2.0] * 10)
    one_way = difference(curve(*[2.0 * (1 + 3e-6)] * 10), expected)
    to_and_fro = difference(curve(*[2.0 * (1 + 3e-6), 2.0 * (1 - 3e-6)] * 5), expected)
    assert one_way.loss == pytest.approx(to_and_fro.loss, rel=1e-3)
    assert not one_way.passed
    assert to_and_fro.passed


def test_what_is_not_a_number_does_not_pass():
    nan = float("nan")
    assert not difference(curve(nan, 2.0), curve(2.0, 2.0)).passed
    assert not difference(curve(2.0, norm=nan), curve(2.0)).passed
    assert difference(curve(0.0), curve(0.0)).passed
    assert same_tokens(curve(1.0, 2.0), curve(3.0, 4.0))
    assert not same_tokens(curve(1.0, 2.0), curve(3.0))
