"""What must never be shown: anything called `token`, and in `env` any name with key, token, secret or password.

A secret shows as `****` in every output. Origins carry the line they stand on, so the line is masked where the
source is read, once, and nobody downstream can forget to. A file that holds `****` for a secret says nothing
about it: the saved configuration of a run loads, and the value is left to the caller's environment.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sftctl.config.sources.items import Item
from sftctl.errors import Origin, Problem

MASK = "****"

_NAMES = frozenset(
    {"token", "hf_token", "use_auth_token", "access_token", "auth_token", "api_key", "secret", "secret_key", "password"}
)
_WORDS = ("key", "token", "secret", "password")
# Compiled when they are first asked: on the way to an error, or for a name with one of the words in it.
_WRITTEN = r"""(?i)["']?([\w.\-~]*(?:key|token|secret|password)\w*)["']?\s*[=:]\s*(\S.*)"""
_HARMLESS = (
    r"(?i)(.*\.)?(eos_token|bos_token|pad_token|unk_token|\w*tokens?_(id|ids|per_second)|max_new_tokens|num_\w*tokens"
    r"|tokenizers?\w*)"
)


def is_secret(path: Sequence[str | int]) -> bool:
    """Whether what stands at `path` must be masked: ("env", "HF_TOKEN"), ("model", "model_init_kwargs", "token")."""
    if len(path) > 1 and path[0] == "env" and isinstance(path[1], str):
        return _says_secret(path[1])
    return any(isinstance(step, str) and step.lower() in _NAMES for step in path[1:])


def _says_secret(name: str) -> bool:
    plain = name.lower().replace("tokenizer", "")  # TOKENIZERS_PARALLELISM is none
    return any(word in plain for word in _WORDS)


def looks_secret(name: str, value: Any) -> bool:
    """Whether a text of that name is better not shown where nothing is lost by it: in a snippet, in a `repr`."""
    return isinstance(value, str) and _says_secret(name) and re.fullmatch(_HARMLESS, name) is None


def mask(value: Any, path: Sequence[str | int]) -> Any:
    """The value with what is secret in it as `****`; None stays None."""
    if is_secret(path):
        return value if value is None else MASK
    if isinstance(value, Mapping):
        return type(value)({key: mask(each, (*path, key)) for key, each in value.items()})  # type: ignore[call-arg]  # a dict, or our Table
    if isinstance(value, (list, tuple)):
        return type(value)(mask(each, (*path, index)) for index, each in enumerate(value))
    return value


def hide(item: Item, path: Sequence[str | int] = ()) -> Item:
    """The same tree, with secrets masked in the lines that its origins carry."""
    spans: dict[tuple[str, int | None], list[tuple[int, int]]] = {}
    for origin in _secret_origins(item, tuple(path)):
        if origin.text is not None and origin.column is not None and origin.end_column is not None:
            spans.setdefault((origin.name, origin.line), []).append((origin.column - 1, origin.end_column - 1))
    return _rewrite(item, spans) if spans else item


def guess(problem: Problem) -> Problem:
    """A syntax error's problem, whatever on its lines looks like a secret masked: there is no tree to go by."""
    origin = None if problem.origin is None else _guess(problem.origin)
    help = problem.help
    for word in _words(problem.origin, origin):
        help = help.replace(word, MASK) if help else None
    related = tuple(_guess(each) for each in problem.related)
    return dataclasses.replace(problem, origin=origin, help=help, related=related)


def _words(before: Origin | None, after: Origin | None) -> list[str]:
    """The words that masking took from a line, which a hint may have quoted."""
    if before is None or after is None or before.text is None or after.text is None or before.text == after.text:
        return []
    hidden = before.text[len(after.text.removesuffix(MASK)) :]
    return [word.strip("\"'") for word in hidden.split() if len(word) > 2]


def _secret_origins(item: Item, path: tuple[str | int, ...]) -> Iterable[Origin]:
    name = path[-1] if path else ""
    if item.value is not None and (is_secret(path) or (isinstance(name, str) and looks_secret(name, item.value))):
        yield item.origin
        return
    if isinstance(item.value, dict):
        for key, each in item.value.items():
            yield from _secret_origins(each, (*path, key))
    elif isinstance(item.value, list):
        for index, each in enumerate(item.value):
            yield from _secret_origins(each, (*path, index))


def _rewrite(item: Item, spans: Mapping[tuple[str, int | None], list[tuple[int, int]]]) -> Item:
    value = item.value
    if isinstance(value, dict):
        value = {key: _rewrite(each, spans) for key, each in value.items()}
    elif isinstance(value, list):
        value = [_rewrite(each, spans) for each in value]
    key = None if item.key is None else _masked(item.key, spans.get((item.key.name, item.key.line), ()))
    return Item(value, _masked(item.origin, spans.get((item.origin.name, item.origin.line), ())), key)


def _masked(origin: Origin, spans: Iterable[tuple[int, int]]) -> Origin:
    """The origin with `spans` of its line masked, and its columns moved to where they are now."""
    text, column, end = origin.text, origin.column, origin.end_column
    if text is None or column is None or end is None:
        return origin
    for start, stop in sorted(set(spans), reverse=True):
        text = text[:start] + MASK + text[stop:]
        grown = len(MASK) - (stop - start)
        column = (
            column + grown if column - 1 >= stop else min(column, start + len(MASK)) if column - 1 > start else column
        )
        end = end + grown if end - 1 >= stop else end
    return Origin(origin.kind, origin.name, origin.line, column, max(end, column + 1), text)


def _guess(origin: Origin) -> Origin:
    if origin.text is None or origin.column is None:
        return origin
    match = re.search(_WRITTEN, origin.text)
    if match is None or re.fullmatch(_HARMLESS, match.group(1)):
        return origin
    text = origin.text[: match.start(2)] + MASK
    column = min(origin.column, len(text) + 1)
    return Origin(origin.kind, origin.name, origin.line, column, column + 1, text)
