"""Small tokenizers of three kinds, trained in the session, under chat templates in the manner of real ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # Hypothesis runs many small batches

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sftctl.engine.data.origin import OpenSource, Source
from sftctl.engine.data.pipeline import Pipeline
from sftctl.engine.data.readers import Line
from sftctl.engine.data.rendering import Loss
from sftctl.engine.data.store import Store, Writer
from sftctl.engine.data.worker import Kit, Settings

TEMPLATES = Path(__file__).parent / "templates"
KINDS = ("byte_level", "byte_fallback", "unigram")

# name: (bos, eos); what ends a turn is the template's own affair
SPECIAL = {
    "chatml": (None, "<|im_end|>"),
    "tagged": (None, "<|im_end|>"),
    "tagged_in_macro": (None, "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "mistral": ("<s>", "</s>"),
    "qwen25": (None, "<|im_end|>"),
    "qwen3": (None, "<|im_end|>"),
    "gemma": ("<bos>", "<eos>"),
    "phi": ("<s>", "<|endoftext|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "gptoss": (None, "<|return|>"),
}
MARKERS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "<bos>",
    "<eos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<|start|>",
    "<|message|>",
    "<|channel|>",
    "<|return|>",
    "<|call|>",
]
PLAIN_MARKERS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "user assistant system tool content message: what is two plus two? It is four.",
    "How many apples are left when three of the seven are eaten? There are four apples left.",
    "Write the date in the form of year, month and day. Today is the third of March.",
    "A small model learns to answer short questions, and then it learns to stop.",
    "naïve café, über, façade, résumé; Ελληνικά, русский язык, עברית, العربية, 日本語, 한국어.",
    "Four of them, For a\nline, Five\n\nlines\nTwo",
    '{"name": "weather", "arguments": {"city": "Paris"}}',
] * 20


@lru_cache
def backend(kind: str) -> str:
    """A trained tokenizer of this kind, as its JSON."""
    made = {"byte_level": _byte_level, "byte_fallback": _byte_fallback, "unigram": _unigram}[kind]()
    made.add_special_tokens(MARKERS)
    made.add_tokens([AddedToken(marker, normalized=False) for marker in PLAIN_MARKERS])
    return str(made.to_str())


def _byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def _byte_fallback() -> Tokenizer:
    """SentencePiece BPE as in Llama 2: a space is U+2581, one stands before the text, unknown characters are bytes."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(CORPUS[:5], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *state["vocab"]]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(pair) for pair in state["merges"]]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = trained.normalizer
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def _unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    return made


@lru_cache
def chat_tokenizer(kind: str, template: str) -> Any:
    """A tokenizer of this kind with this template, as Transformers has it."""
    bos, eos = SPECIAL[template]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend(kind)),
        bos_token=bos,
        eos_token=eos,
        chat_template=(TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8"),
    )


@lru_cache
def kit_of(kind: str, template: str) -> Kit:
    return Kit(chat_tokenizer(kind, template))


def store_of(rows: Sequence[Mapping[str, Any]], kit: Kit, source: Source | None = None, **settings: Any) -> Store:
    """Rows, without a file, through the whole path of one source."""
    loss = Loss(**{name: settings.pop(name) for name in Loss.__dataclass_fields__ if name in settings})

    def lines() -> Iterator[Line]:
        return (Line("rows.jsonl", number, dict(row)) for number, row in enumerate(rows, start=1))

    opened = OpenSource("rows.jsonl", "data.datasets[0]", lines, lambda: "", lambda place: iter(()))
    source = source or Source("rows.jsonl")
    return Pipeline(source, opened, Settings(loss=loss, **settings), kit).run(Writer())


@pytest.fixture(scope="session")
def chat() -> Callable[[str, str], Any]:
    return chat_tokenizer


@pytest.fixture(scope="session")
def kits() -> Callable[[str, str], Kit]:
    return kit_of


@pytest.fixture(scope="session")
def make_store() -> Callable[..., Store]:
    return store_of


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON lines; the path."""

    def write(rows: Sequence[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
