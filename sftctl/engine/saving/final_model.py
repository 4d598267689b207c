"""The final model: a folder in Hugging Face format, whole or not there.

Written aside, flushed and renamed, like a checkpoint; a final model that was there before makes way in one
rename, at the last moment. Weights are safetensors; nothing in the folder can run code.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sftctl.runs.files import fsync_folder, refusals


def save_final(model: Any, tokenizer: Any, path: Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Save so that AutoModelForCausalLM and AutoTokenizer load `path` (an adapter: so that peft does).

    `state_dict`: the weights to save where they are not the model's own, as float32 masters or gathered shards.
    Raises RunError where the disk refuses; `path` is then as it was.
    """
    with folder_aside(path) as writing, _disk_errors():
        keywords = {} if state_dict is None else {"state_dict": dict(state_dict)}
        model.save_pretrained(writing, **keywords)
        tokenizer.save_pretrained(writing)


@contextlib.contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """A new folder to write in, which becomes `path` when the block ends, and vanishes when it raises."""
    writing = path.with_name(f".{path.name}.writing")
    with refusals(path, "write"):
        try:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir()
            yield writing
            _flush(writing)
            _exchange(writing, path)
        finally:
            shutil.rmtree(writing, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """safetensors reports the system's refusal as an error of its own: make it an OSError again."""
    from safetensors import SafetensorError  # its exception class is made at import, with the library

    try:
        yield
    except SafetensorError as error:
        text = str(error)
        number = next((int(part) for part in text.replace(")", " ").split() if part.isdecimal()), 0)
        if "os error" not in text:
            raise
        raise OSError(number, os.strerror(number)) from error


def _flush(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_folder(Path(root))


def _exchange(writing: Path, path: Path) -> None:
    """Rename into place. Between the two renames of a replacement a crash leaves the new folder under its old name."""
    replaced = path.with_name(f".{path.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if path.exists():
        os.rename(path, replaced)
    os.rename(writing, path)
    fsync_folder(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)
