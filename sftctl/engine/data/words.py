"""Ids of plain text by table: split as the tokenizer splits it, each word looked up, its ids found once.

    "<|im_start|>user\\nHi there"  ->  <|im_start|> | user | \\n | Hi | Ġthere  ->  ids

For byte-level BPE whose splitting is known to the letter (GPT-2's, or one given as a regular expression of letters,
digits and white space: SmolLM, Llama 3, Qwen, …), and text of KNOWN characters: Latin-1 and common punctuation, whose
kinds no version of Unicode will change. Other text goes to the tokenizer. A word's ids are what the tokenizer's own
model makes of it. A tokenizer that splits in any other way has no table, nor has one whose table does not reproduce the
tokenizer on the probes; the first text of every batch is held against the tokenizer as well.

Measured, 7,473 conversations, 1.62 M tokens, SmolLM2, processor seconds: the tokenizer 1.6, the table 0.4. The
tokenizer runs on all cores and lets go of Python's lock, the table does neither, so it is for FEW_CORES.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW_CORES = 4
MAX_WORDS = 2**17
"""About 30 MB; then it begins anew: rows of ever new numbers would fill any table."""
GPT2 = r" ?+\p{L}++| ?+\p{N}++|'(?:[stmd]|re|ve|ll)| ?+[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+"
"""GPT-2's words, what is most frequent tried first, and never given back: a seventh less time than as it is written."""
UNKNOWN = re.compile("[^\x00-\x7f\xa1-\xff\u2010-\u2027\u2030-\u205e\u20ac]")
UPPER, LOWER, DIGITS = "A-Z\xc0-\xd6\xd8-\xde", "a-z\xb5\xdf-\xf6\xf8-\xff", "0-9"
KNOWN_OF = {
    **dict.fromkeys(("L", "Letter"), f"{UPPER}{LOWER}\xaa\xba"),
    **dict.fromkeys(("N", "Number"), f"{DIGITS}\xb2\xb3\xb9\xbc-\xbe"),
    "Nd": DIGITS,
    "Lu": UPPER,
    "Ll": LOWER,
    "Lo": "\xaa\xba",
    "Lt": "",
    "Lm": "",
    "M": "",
}
"""The known characters of a Unicode property, as they stand in a character class."""
PROBES = (
    "".join(map(chr, range(1, 128))),
    "".join(map(chr, (*range(0xA1, 0x100), *range(0x2010, 0x2028), *range(0x2030, 0x205F), 0x20AC))),
    "“Où est l’été ?” – ½ café… €5 Ça va, ÉTÉ, it’s 3²",
    "I'm sure they'LL've 12345 apples,  and\n\n  3.14 (or so)!!\r\n\t x\n ",
    "a  b   c \n d\n\n\n e   ",
    "\n\n½ x  ²\n\n7",
    "def f(x):\n\treturn x**2  # 'quoted' \"twice\"\n",
    "$1,000.50 == <<48/2=24>>24; http://a.b/c?d=e&f",
)


def use_table() -> bool:
    """Whether a table is worth it here: on few cores, or in one of several processes."""
    return (os.cpu_count() or 1) <= FEW_CORES or os.environ.get("TOKENIZERS_PARALLELISM") == "false"


class WordTable(dict[str, int]):
    """Word -> code: the id of a word of one token, else the number of a longer one's ids, after the vocabulary."""

    def __init__(
        self, backend: Any, patterns: Sequence[re.Pattern[str]], added: Mapping[str, int], vocab_size: int
    ) -> None:
        super().__init__()
        self._backend, self._patterns, self._added, self._size = backend, patterns, added, vocab_size
        longest_first = sorted(added, key=len, reverse=True)
        self._lock = Lock()
        self._split_added = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if added else None
        self._reset()

    def _reset(self) -> None:
        self.clear()
        self._longer, self._lengths = array("i"), array("i")
        self._arrays: tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]] | None = None

    def __missing__(self, word: str) -> int:
        ids: list[int] = [
            token.id for token in self._backend.model.tokenize("".join([BYTE_LETTERS[byte] for byte in word.encode()]))
        ]
        if len(ids) == 1:
            code = ids[0]
        else:
            code = self._size + len(self._lengths)
            self._lengths.append(len(ids))
            self._longer.extend(ids)
            self._arrays = None
        self[word] = code
        return code

    def ids(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids, flat, and where each text's begin. Text with characters that are not known goes to the tokenizer."""
        known = [text.isascii() or UNKNOWN.search(text) is None for text in texts]
        wide = [text for text, here in zip(texts, known, strict=True) if not here]
        others = iter(self._backend.encode_batch_fast(wide, add_special_tokens=False))
        codes: list[int] = []
        ends = [0]
        with self._lock:
            if len(self) > MAX_WORDS:
                self._reset()
            for text, here in zip(texts, known, strict=True):
                if here:
                    self._add_codes(text, codes)
                else:
                    codes += next(others).ids
                ends.append(len(codes))
            return self._expanded(np.array(codes, dtype=np.int64), np.array(ends))

    def agrees(self, text: str) -> bool:
        """Whether table and tokenizer give this text the same ids."""
        return bool(self.ids([text])[0].tolist() == self._backend.encode(text, add_special_tokens=False).ids)

    def _add_codes(self, text: str, codes: list[int]) -> None:
        split, code_of = self._patterns[-1].findall, self.__getitem__
        for place, part in enumerate(self._split_added.split(text) if self._split_added else [text]):
            if place % 2:
                codes.append(self._added[part])
                continue
            pieces = [part]
            for pattern in self._patterns[:-1]:
                pieces = [inner for piece in pieces for inner in pattern.findall(piece)]
            for piece in pieces:
                codes += map(code_of, split(piece))

    def _expanded(
        self, codes: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Codes 5 9 6, of which 9 stands for ids 7 8: ids 5 7 8 6."""
        if self._arrays is None:
            lengths = np.concatenate([np.ones(self._size, np.int64), np.frombuffer(self._lengths, np.intc)])
            flat = np.concatenate([np.arange(self._size, dtype=np.int32), np.frombuffer(self._longer, np.intc)])
            self._arrays = flat, np.cumsum(lengths) - lengths, lengths
        flat, starts, lengths = self._arrays
        counts = lengths[codes]
        total = np.concatenate([[0], np.cumsum(counts)])
        ids = flat[np.repeat(starts[codes] - total[:-1], counts) + np.arange(total[-1])]
        return ids, total[ends]


def word_table(backend: Any, steps: Sequence[Mapping[str, Any]], vocab_size: int) -> WordTable | None:
    """The table of a byte-level tokenizer whose pre-tokenizer does `steps`; None where it cannot have one."""
    added = backend.get_added_tokens_decoder()
    odd = any(t.lstrip or t.rstrip or t.single_word or t.normalized or not t.content for t in added.values())
    patterns = [_pattern(step) for step in steps]
    if odd or None in patterns or type(backend.model).__name__ != "BPE" or backend.model.dropout:
        return None
    splits = [pattern for pattern in patterns if isinstance(pattern, re.Pattern)]
    if not splits:
        return None
    table = WordTable(backend, splits, {token.content: index for index, token in added.items()}, vocab_size)
    probes = (*PROBES, *(f"x {token.content} y" for token in added.values()))
    return table if all(map(table.agrees, probes)) else None


def _pattern(step: Mapping[str, Any]) -> re.Pattern[str] | str | None:
    """A step of the pre-tokenizer as a pattern whose matches are its words; "" where it splits nothing."""
    if step["type"] == "ByteLevel":
        return known_pattern(GPT2) if step.get("use_regex", True) else ""
    if step["type"] == "Digits":
        numeric = KNOWN_OF["N"]  # not decimals alone: Rust's is_numeric, which takes ½ too
        return re.compile(f"[{numeric}]{'' if step.get('individual_digits') else '+'}|[^{numeric}]+")
    if step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        text = step["pattern"].get("Regex")
        return known_pattern(text) if text is not None else None
    return None


def known_pattern(text: str) -> re.Pattern[str] | None:
    """A tokenizer's regular expression for text of known characters; None where its meaning is not certain.

    White space is ASCII's, which all known white space is.
    """
    pieces, place, in_class = [], 0, False
    for match in re.finditer(r"\\p\{(\w+)\}|\\.|\[|\]", text, re.DOTALL):
        pieces.append(text[place : match.start()])
        place, token = match.end(), match.group()
        if match.group(1):
            if match.group(1) not in KNOWN_OF:
                return None
            letters = KNOWN_OF[match.group(1)]
            pieces.append(letters if in_class else f"[{letters}]" if letters else r"[^\x00-\U0010ffff]")
            continue
        if token in "[]":
            if (token == "[") == in_class:
                return None
            in_class = token == "["
        elif token[1].isalpha() and token[1] not in "srnStdD":
            return None
        pieces.append(token)
    translated = "".join([*pieces, text[place:]])
    if "&&" in translated or "(?<" in translated or re.search(r"\((?!\?)", translated):
        return None  # set operations, names, groups that would change what findall gives
    try:
        pattern = re.compile(translated, re.ASCII)
    except re.error:
        return None
    return None if pattern.groups else pattern


def _byte_letters() -> list[str]:
    """What stands for each byte in a byte-level vocabulary: its Latin-1 character if that shows, else one from Ā on."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


BYTE_LETTERS = _byte_letters()
