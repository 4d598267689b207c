"""Ids by table are those of the tokenizer, whatever the ASCII text and however it splits; else there is no table."""

from __future__ import annotations

import json
import re
import unicodedata
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

from sftctl.engine.data import words
from sftctl.engine.data.tokens import Encoder, _parts
from sftctl.engine.data.words import WordTable, known_pattern, word_table
from tests.engine.data.conftest import CORPUS, chat_tokenizer

LLAMA3 = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str, behavior: str = "isolated") -> Any:
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior), letters])


SPLITTING: dict[str, Any] = {
    "gpt2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "digits together": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama3": lambda: split(LLAMA3),
    "qwen2": lambda: split(QWEN2),
    "cased": lambda: split(CASED),
}


@lru_cache
def backend(name: str) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = SPLITTING[name]() if name in SPLITTING else split(name)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([*CORPUS, "in 2024 there were 1,234 of 56;  it's\n\n  they'll"] * 3, trainer)
    made.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|im_"])
    made.add_tokens([AddedToken("<think>", normalized=False)])
    return made


def table_of(made: Tokenizer) -> WordTable | None:
    size = 1 + max(made.get_vocab(with_added_tokens=True).values())
    return word_table(made, _parts(made.pre_tokenizer, "pretokenizers"), vocab_size=size)


PIECES = [
    *("the", " dog", "It's", "THEY'LL", "'D", "12345", "7", "  ", "\n", "\n\n", " \r\n", "\t", "!!", "…", "é", " 日本"),
    *("<|im_end|>", "<|im_", "<think>", "a_b", "$1,000.5", "\x00", "\x1f", "\x7f", "\x0b\x0c", "aB", "AbC"),
]
LETTERS = st.characters(codec="ascii") | st.sampled_from("éÉßµªº²½×’“”–…€¿\xad\u2028\xa0\x85")
TEXT = st.lists(st.sampled_from(PIECES) | st.text(LETTERS, max_size=6), max_size=12).map("".join)


@pytest.mark.parametrize("name", SPLITTING)
@given(texts=st.lists(TEXT, max_size=4))
@example(texts=["\n\n½"])
@settings(deadline=None, max_examples=150)
def test_ids_by_table_are_those_of_the_tokenizer(name: str, texts: list[str]) -> None:
    made = backend(name)
    table = table_of(made)
    assert table is not None
    ids, offsets = table.ids(texts)
    found = [ids[low:high].tolist() for low, high in pairwise(offsets)]
    assert found == [made.encode(text, add_special_tokens=False).ids for text in texts]


def test_words_are_split_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And forgotten when there are too many of them."""
    table = table_of(backend("gpt2"))
    assert table is not None
    first = table.ids(["the very unusual words of it"])[0].tolist()
    before = len(table)
    assert table.ids(["the very unusual words of it"])[0].tolist() == first
    assert len(table) == before
    monkeypatch.setattr(words, "MAX_WORDS", 3)
    assert table.ids(["the very unusual words of it"])[0].tolist() == first
    assert len(table) < before


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"\p{Sc}|\w+|\s+", r"(\w+)|\W", r"(?<a>\w)|\W", r"\h+|\H+"),
        *(r"[[:alpha:]]+|.", r"[a-z&&[^b]]+|.", r"\w+", r"(?<=a)b|."),
    ],
    ids=str,
)
def test_patterns_that_are_not_known_to_the_letter_have_no_table(pattern: str) -> None:
    """Among them one that leaves text between its matches."""
    assert table_of(backend(pattern)) is None
    assert known_pattern(pattern) is None


def test_a_table_is_held_against_every_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in (words.PROBES[0], words.PROBES[-1], "x <|im_end|> y"):
        monkeypatch.setattr(WordTable, "agrees", lambda self, text, probe=probe: text != probe)
        assert table_of(backend("gpt2")) is None


@pytest.mark.parametrize("probed", [True, False])
def test_other_ways_of_splitting_have_no_table(monkeypatch: pytest.MonkeyPatch, probed: bool) -> None:
    """By what the tokenizer says of itself, and not by the probes alone."""
    if not probed:
        monkeypatch.setattr(WordTable, "agrees", lambda self, text: True)
    for behavior in ("removed", "merged_with_previous"):
        made = Tokenizer.from_str(backend("gpt2").to_str())
        made.pre_tokenizer = split(r"\s", behavior)
        assert table_of(made) is None
    inverted = Tokenizer.from_str(backend("gpt2").to_str())
    inverted.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\S"), "isolated", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    assert table_of(inverted) is None
    for odd in ({"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}):
        stripping = Tokenizer.from_str(backend("gpt2").to_str())
        stripping.add_tokens([AddedToken("<mask>", **({"normalized": False} | odd))])
        assert table_of(stripping) is None
    dropping = json.loads(backend("gpt2").to_str())
    dropping["model"]["dropout"] = 0.1
    assert table_of(Tokenizer.from_str(json.dumps(dropping))) is None


def test_the_translation_of_a_pattern() -> None:
    pattern = known_pattern(r"[^\s\p{L}\p{N}]+|\p{N}{1,3}")
    assert pattern is not None
    letters, digits = "A-Z\xc0-\xd6\xd8-\xdea-z\xb5\xdf-\xf6\xf8-\xff\xaa\xba", "0-9\xb2\xb3\xb9\xbc-\xbe"
    assert pattern.pattern == f"[^\\s{letters}{digits}]+|[{digits}]{{1,3}}"


def test_the_kinds_of_known_characters_are_unicode_s() -> None:
    known = [chr(code) for code in range(0x10000) if not words.UNKNOWN.match(chr(code))]
    assert len(known) == 128 + 95 + 24 + 47 + 1
    for name, letters in words.KNOWN_OF.items():
        wanted = {"Letter": "L", "Number": "N"}.get(name, name)
        found = [char for char in known if letters and re.match(f"[{letters}]", char)]
        assert found == [char for char in known if unicodedata.category(char).startswith(wanted)], name
    assert not any(char.isspace() and not char.isascii() for char in known)


def test_a_table_that_disagrees_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is held against the tokenizer on its first text."""
    monkeypatch.setattr(words, "FEW_CORES", 10**6)
    encoder = Encoder(chat_tokenizer("byte_level", "chatml"))
    assert encoder._words is not None
    text = "the very unusual words of it"
    right = encoder.encode([text]).ids.tolist()
    encoder._words["the"] = 0
    assert encoder.encode([text]).ids.tolist() == right
    assert encoder._words is None


def test_many_cores_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words.os, "cpu_count", lambda: 64)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    assert not words.use_table()
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert words.use_table()
