"""What `throughput.py` trains: rows of a file or sums, a model of a folder or a tiny one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_rows(source: Path | None, path: Path, *, count: int) -> int:
    """Questions with their answers as prompt and completion; without a source, sums."""
    lines = source.read_text(encoding="utf-8").splitlines()[:count] if source else map(sum_row, range(count))
    rows = [row if isinstance(row, dict) else conversation(json.loads(row)) for row in lines]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def conversation(row: dict[str, str]) -> dict[str, Any]:
    asked, answered = ({"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]})
    return {"prompt": [asked], "completion": [answered]}


def sum_row(number: int) -> dict[str, Any]:
    """Terms that differ in number, so that documents differ in length."""
    terms = [(number * 7919 + place * 104729) % 1000 for place in range(2 + number % 9)]
    return {"prompt": " + ".join(map(str, terms)) + " = ", "completion": str(sum(terms))}


def make_tiny(folder: Path) -> None:
    """A Llama of two layers with the built-in byte-level tokenizer, saved for both sides to load."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sftctl.engine.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("bytes")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=176, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
