"""What must never reach a file: tokens, keys, passwords.

Two rules, both applied wherever text goes to disk or to a tracker. By name: the value of anything called
token, secret, password, api key or credential. By shape: the tokens of the services of this field, and the
user part of a URL. `eos_token` and `max_new_tokens` are words of the field and no secrets; a name that ends in
"token" otherwise is taken for one. A shape rule has false negatives. Nothing here replaces keeping secrets out
of recipes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

REDACTED = "***"

_SECRET_NAME = re.compile(
    r"(?:^|[_\-.\s])(?:token|secrets?|passwords?|passwd|passphrase|credentials?"
    r"|api[_-]?keys?|access[_-]?keys?|private[_-]?keys?)$"
    r"|(?:^|[_\-.\s])(?:secret|password|api[_-]?key|access[_-]?key)[_\-.]",
    re.IGNORECASE,
)
_VOCABULARY_NAME = re.compile(r"(?:eos|bos|pad|unk|sep|cls|mask|stop|special|image|audio)[_-]?tokens?$", re.IGNORECASE)
_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}"  # model services
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"  # code hosts
    r"|\bAKIA[0-9A-Z]{16}\b"  # cloud storage
    r"|\bwandb_v\d_\w{16,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"  # JSON web tokens
)
_URL_USER = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_ASSIGNMENT = re.compile(r"(?P<name>[\w.\-]+)(?P<sign>\s*=\s*)(?P<value>\"[^\"]*\"|'[^']*'|[^\s,;]+)")


def is_secret_name(name: str) -> bool:
    """`HF_TOKEN`, `--api-key`, `env.WANDB_API_KEY`: yes. `model.eos_token`, `max_new_tokens`, `num_tokens`: no."""
    return bool(_SECRET_NAME.search(name)) and not _VOCABULARY_NAME.search(name)


def redact_text(text: str) -> str:
    """`text` without what looks like a secret: "HF_TOKEN=abc" -> "HF_TOKEN=***"."""
    return _ASSIGNMENT.sub(
        lambda match: f"{match['name']}{match['sign']}{REDACTED}" if is_secret_name(match["name"]) else match[0],
        redact_shapes(text),
    )


def redact_shapes(text: str) -> str:
    """The same by shape alone, for a file whose names were seen to already: what was quoted stays quoted."""
    return _SHAPES.sub(REDACTED, _URL_USER.sub(REDACTED, text))


def redact_command(arguments: Iterable[str]) -> list[str]:
    """A command line without secrets: ["--hub-token", "abc"] -> ["--hub-token", "***"]."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        if hide_next and not argument.startswith("--"):
            shown.append(REDACTED)
        else:
            shown.append(redact_text(argument))
        hide_next = argument.startswith("-") and "=" not in argument and is_secret_name(argument.lstrip("-"))
    return shown


def redact_tree(value: Any, name: str = "") -> Any:
    """The same through nested tables and lists: {"env": {"HF_TOKEN": "abc"}} -> {"env": {"HF_TOKEN": "***"}}."""
    if isinstance(value, Mapping):
        return {key: redact_tree(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_tree(item, name) for item in value]
    if isinstance(value, str):
        return REDACTED if value and is_secret_name(name) else redact_text(value)
    return value
