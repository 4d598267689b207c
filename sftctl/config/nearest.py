"""The word someone probably meant."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.7) -> str | None:
    """The closest of `known` words, or None where none is close.

    Case, `-` and `_` do not count. `shedule` finds `schedule`, `lerning_rate` `learning_rate`; `cosin` `cosine`.
    """
    import difflib  # 3 ms, only on the way to an error

    by_plain = {_plain(each): each for each in known}
    found = difflib.get_close_matches(_plain(word), by_plain, n=1, cutoff=cutoff)
    return by_plain[found[0]] if found else None


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")
