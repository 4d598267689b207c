"""What is taken for a secret, and what is not."""

import pytest

from sftctl.runs.secrets import is_secret_name, redact_command, redact_text, redact_tree


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "env.HF_TOKEN", "--api-key", "WANDB_API_KEY", "password", "AWS_SECRET_ACCESS_KEY", "db.passwd",
     "hub_token", "credentials", "OPENAI_API_KEY_2"],
)  # fmt: skip
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["model.eos_token", "pad_token", "max_new_tokens", "num_tokens", "tokenizer", "learning_rate", "key", "monkey",
     "num_trained_tokens", "tokens_per_second", "passes"],
)  # fmt: skip
def test_names_that_only_sound_like_it(name):
    assert not is_secret_name(name)


def test_a_command_line_is_cleared():
    assert redact_command(
        [
            "sftctl",
            "train",
            "a.toml",
            "--hub-token",
            "abc",
            "--set",
            "env.HF_TOKEN='abc'",
            "--seed",
            "1",
            "--api-key=abc",
        ]
    ) == [
        "sftctl",
        "train",
        "a.toml",
        "--hub-token",
        "***",
        "--set",
        "env.HF_TOKEN=***",
        "--seed",
        "1",
        "--api-key=***",
    ]


def test_shapes_of_tokens_are_cleared_wherever_they_are():
    text = "fetch https://me:pw@hub.example/x with hf_abcdefghijklmnopqrst or sk-abcdefghijklmnop1234"
    assert redact_text(text) == "fetch https://***@hub.example/x with *** or ***"


def test_ordinary_text_is_left_alone():
    text = "loss = 0.25, max_length=512; see https://example.org/a?b=c and user@example.org"
    assert redact_text(text) == text


def test_trees_are_cleared_by_name_and_by_shape():
    tree = {"env": {"HF_TOKEN": "abc", "OMP_NUM_THREADS": "2"}, "model": {"eos_token": "<|im_end|>"},
            "list": ["hf_abcdefghijklmnopqrst"], "n": 3}  # fmt: skip
    assert redact_tree(tree) == {
        "env": {"HF_TOKEN": "***", "OMP_NUM_THREADS": "2"},
        "model": {"eos_token": "<|im_end|>"},
        "list": ["***"],
        "n": 3,
    }
