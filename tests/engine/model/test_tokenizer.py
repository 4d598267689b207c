"""The built-in byte-level tokenizer, and what is said of tokenizers that cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sftctl.engine.model.tokenizer import BYTES_SPECIAL, load_tokenizer
from sftctl.errors import ModelError

TALK = [{"role": "user", "content": "naïve 😀"}, {"role": "assistant", "content": " yes\n"}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The tokenizer, and the same after it was saved and loaded by Transformers."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = load_tokenizer("bytes")
    tokenizer.save_pretrained(folder)
    return tokenizer, AutoTokenizer.from_pretrained(folder)


@given(text=st.text(max_size=40) | st.sampled_from(["<|im_end|>", "a<|pad|> b", "  ", "\r\n\x00"]))
def test_ids_are_the_bytes_and_come_back(saved: tuple[Any, Any], text: str) -> None:
    """Every text is its UTF-8 bytes and decodes to itself; saved and loaded it is the same."""
    for tokenizer in saved:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        if not any(token in text for token in BYTES_SPECIAL):
            assert ids == list(text.encode())


def test_special_tokens_come_after_the_bytes(saved: tuple[Any, Any]) -> None:
    for tokenizer in saved:
        assert tokenizer.convert_tokens_to_ids(list(BYTES_SPECIAL)) == [256, 257, 258, 259]
        assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == ("<|im_end|>", "<|pad|>", 260)
        assert tokenizer("a<|im_end|>")["input_ids"] == [97, 258]


def test_its_template_is_chatml_with_generation_tags(saved: tuple[Any, Any]) -> None:
    for tokenizer in saved:
        text = tokenizer.apply_chat_template(TALK, tokenize=False)
        assert text == "<|im_start|>user\nnaïve 😀<|im_end|>\n<|im_start|>assistant\n yes\n<|im_end|>\n"
        prompt = tokenizer.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)
        assert text.startswith(prompt)
        out = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
        masked = [i for i, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask]
        assert tokenizer.decode(masked) == " yes\n<|im_end|>"


def test_template_and_eos_token_can_be_replaced() -> None:
    tokenizer = load_tokenizer("bytes", chat_template="{{ messages[0].content }}", eos_token="<|endoftext|>")
    assert tokenizer.apply_chat_template(TALK, tokenize=False) == "naïve 😀"
    assert tokenizer.eos_token_id == 256


def test_an_eos_token_that_is_none_of_its_tokens() -> None:
    with pytest.raises(ModelError) as error:
        load_tokenizer("bytes", eos_token="<end>")
    assert str(error.value).startswith("model.eos_token: '<end>' is no token of bytes; it has <|im_end|>")


def test_tokenizers_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"model\.tokenizer: there is no folder /nowhere"):
        load_tokenizer("/nowhere/at/all")
    with pytest.raises(ModelError, match=f"no tokenizer could be loaded from {tmp_path}") as error:
        load_tokenizer(str(tmp_path))
    assert error.value.problems[0].help == "it needs tokenizer.json and tokenizer_config.json"
