"""Ids are the tokenizer's own; places are those of the text, exact to the byte for byte-level tokenizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sftctl.engine.data import tokens
from sftctl.engine.data.tokens import Encoder

KINDS = ("byte_level", "byte_fallback", "unigram")
TEXTS = st.lists(
    st.text(max_size=30) | st.sampled_from(["", "  two", "<|im_end|>\n", "é😀x", "a <|im_end|> b"]), max_size=6
)


def encoder_of(backend: Tokenizer, **special: str) -> tuple[Encoder, Any]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    return Encoder(tokenizer), tokenizer


@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS)
@settings(deadline=None, max_examples=60)
def test_ids_are_those_of_the_tokenizer(chat: Any, kits: Any, kind: str, texts: list[str]) -> None:
    encoded = kits(kind, "chatml").encoder.encode(texts)
    rows = [encoded.ids[low:high].tolist() for low, high in zip(encoded.offsets, encoded.offsets[1:], strict=False)]
    assert rows == [chat(kind, "chatml")(text, add_special_tokens=False)["input_ids"] for text in texts]


@given(texts=TEXTS)
@settings(deadline=None, max_examples=100)
def test_byte_level_places_are_the_bytes_of_each_token(kits: Any, texts: list[str]) -> None:
    """Each token's bytes, decoded alone, are the bytes of the text at its place; together they are the text."""
    kit = kits("byte_level", "chatml")
    encoded = kit.encoder.encode(texts)
    assert encoded.in_bytes.all()
    alphabet = {character: byte for byte, character in enumerate(_alphabet())}
    for row, text in enumerate(texts):
        raw, cursor = text.encode(), 0
        for token in range(encoded.offsets[row], encoded.offsets[row + 1]):
            name = kit.encoder.backend.id_to_token(encoded.ids[token])
            stands_for = name.encode() if name in kit.encoder.added else bytes(alphabet[letter] for letter in name)
            assert encoded.starts[token] == cursor
            assert raw[encoded.starts[token] : encoded.ends[token]] == stands_for
            cursor = encoded.ends[token]
        assert cursor == len(raw)


@pytest.mark.parametrize("kind", ["byte_fallback", "unigram"])
@given(texts=TEXTS)
@settings(deadline=None, max_examples=60)
def test_other_places_are_those_of_the_tokenizer(chat: Any, kits: Any, kind: str, texts: list[str]) -> None:
    encoded = kits(kind, "chatml").encoder.encode(texts)
    assert not encoded.in_bytes.any()
    places = [
        pair
        for text in texts
        for pair in chat(kind, "chatml")(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ]
    assert list(zip(encoded.starts.tolist(), encoded.ends.tolist(), strict=True)) == places


def test_the_bytes_of_one_character_share_its_place(kits: Any) -> None:
    encoded = kits("byte_fallback", "chatml").encoder.encode(["😀"])
    starts, ends = encoded.starts[-4:].tolist(), encoded.ends[-4:].tolist()
    assert (starts, ends) == ([0, 0, 0, 0], [1, 1, 1, 1])


def test_a_leading_space_belongs_to_its_token(chat: Any, kits: Any) -> None:
    """The library's own places leave it out (`trim_offsets`); a token across a boundary would look inside."""
    places = chat("byte_level", "chatml")("a dog", return_offsets_mapping=True)["offset_mapping"]
    assert places[1][0] == 2
    assert kits("byte_level", "chatml").encoder.encode(["a dog"]).starts[1] == 1


def test_a_row_whose_bytes_do_not_add_up_goes_by_offsets(chat: Any) -> None:
    """A token that swallows the white space after it is not in the vocabulary's bytes."""
    backend = Tokenizer.from_str(chat("byte_level", "chatml").backend_tokenizer.to_str())
    backend.add_tokens([AddedToken("<end>", rstrip=True, special=True, normalized=False)])
    encoder, tokenizer = encoder_of(backend)
    texts = ["plain é text", "a<end>   b c"]
    encoded = encoder.encode(texts)
    assert encoded.in_bytes.tolist() == [True, False]
    row = slice(encoded.offsets[1], encoded.offsets[2])
    assert encoded.ids[row].tolist() == tokenizer(texts[1], add_special_tokens=False)["input_ids"]
    assert [texts[1][a:b] for a, b in zip(encoded.starts[row], encoded.ends[row], strict=True)] == [
        "a",
        "<end>",
        "b",
        " c",
    ]


def test_text_that_the_tokenizer_normalises_goes_by_offsets(chat: Any) -> None:
    backend = Tokenizer.from_str(chat("byte_level", "chatml").backend_tokenizer.to_str())
    backend.normalizer = normalizers.NFC()
    encoder, _ = encoder_of(backend)
    encoded = encoder.encode(["é", "e\u0301 dog"])
    assert encoded.in_bytes.tolist() == [True, False]
    row = slice(encoded.offsets[1], encoded.offsets[2])
    assert encoded.starts[row].tolist() == [0, 2]
    assert encoded.ends[row].tolist() == [1, 6]


def test_a_tokenizer_that_prepends_a_space_goes_by_offsets(chat: Any) -> None:
    backend = Tokenizer.from_str(chat("byte_level", "chatml").backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    encoder, _ = encoder_of(backend)
    encoded = encoder.encode(["dog dog"])
    assert not encoded.in_bytes.any()
    assert encoded.starts.tolist()[-1] == 3
    assert encoded.starts.tolist()[0] == 0


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]), None),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            None,
        ),
        (pre_tokenizers.Whitespace(), None),
        (pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Lowercase()),
    ],
)
def test_ids_that_are_not_the_bytes_of_the_text_go_by_offsets(chat: Any, pre_tokenizer: Any, normalizer: Any) -> None:
    """By what the tokenizer says of itself, before any text."""
    backend = Tokenizer.from_str(chat("byte_level", "chatml").backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizer
    backend.normalizer = normalizer
    assert not tokens._is_byte_level(backend)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.normalizer = normalizers.NFC()
    assert tokens._is_byte_level(backend)


def test_padding_and_truncation_of_the_file_are_off(chat: Any) -> None:
    backend = Tokenizer.from_str(chat("byte_level", "chatml").backend_tokenizer.to_str())
    expected = backend.encode("a b c d e f").ids
    backend.enable_truncation(2)
    backend.enable_padding(length=99)
    encoder, _ = encoder_of(backend)
    assert encoder.encode(["a b c d e f"]).ids.tolist() == expected


def test_no_texts_and_empty_texts(kits: Any) -> None:
    for kind in KINDS:
        encoder = kits(kind, "chatml").encoder
        assert encoder.encode([]).offsets.tolist() == [0]
        assert np.diff(encoder.encode(["", "a", ""]).offsets)[[0, 2]].tolist() == [0, 0]


def _alphabet() -> list[str]:
    from sftctl.engine.model.tokenizer import _byte_characters

    assert sorted(map(chr, _byte_characters())) == sorted(pre_tokenizers.ByteLevel.alphabet())
    return [chr(code) for code in _byte_characters()]
