"""Models come from a folder or from their config alone, and each way that can fail says what to do."""

from __future__ import annotations

import torch

from sftctl.engine.model.loading import load_model
from tests.engine.model.tiny import TINY


def tiny(**changes):
    settings = {"name_or_path": None, "init": "random", "architecture": TINY, "vocab_size": 40}
    return load_model(**{**settings, **changes})


def test_random_weights_follow_from_the_seed_alone():
    before = torch.random.get_rng_state()
    first, again, other = tiny(seed=1), tiny(seed=1), tiny(seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert first.lm_head.weight.shape == (40, 32)


def test_a_saved_model_loads_with_the_same_weights(tmp_path):
    model = tiny(token_ids={"bos_token_id": 3, "eos_token_id": 7, "pad_token_id": 8})
    model.save_pretrained(tmp_path)
    loaded = load_model(name_or_path=str(tmp_path), vocab_size=40)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    assert loaded.generation_config.eos_token_id == 7
    assert loaded.training
    assert load_model(name_or_path=str(tmp_path), dtype="bfloat16").dtype == torch.bfloat16
