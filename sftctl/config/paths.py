"""Paths of a configuration: relative to what said them, made absolute once; what may be a Hub id stays one.

| said in | a relative path starts from |
|---|---|
| a file | that file's folder |
| environment, options, Python | the working directory |

A `path` that exists is local; else it is a Hub id; but one that begins with `.`, `/` or `~`, holds a wildcard,
or ends in a data suffix is never taken for a Hub id. In a bundle a local path is absolute, so that neither a
change of directory nor a file that appears later changes what it means.
"""

from __future__ import annotations

import os

from sftctl.config.leaves import Leaf

DATA_SUFFIXES = (
    ".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".arrow",
    ".jsonl.gz", ".json.gz", ".jsonl.zst", ".jinja", ".toml", ".yaml", ".yml",
)  # fmt: skip


def resolve(text: str, leaf: Leaf, folder: str) -> str:
    """What `text` means for `leaf`, said in `folder`: an absolute path, a Hub id, or one of the leaf's words."""
    if text in leaf.words or not text.strip() or "\0" in text:
        return text
    path = os.path.normpath(os.path.join(folder, os.path.expanduser(text)))
    if not leaf.may_be_hub_id or must_be_local(text) or os.path.exists(path):
        return path
    return text


def must_be_local(text: str) -> bool:
    """Whether `text` can be no Hub id: `./model`, `/data`, `~/x`, `rows.jsonl`, `part-*.parquet`."""
    return (
        text.startswith((".", "/", "~"))
        or os.path.isabs(text)
        or "\\" in text
        or any(mark in text for mark in "*?[")
        or text.lower().endswith(DATA_SUFFIXES)
    )


def is_missing(path: str) -> bool:
    """Whether a resolved value names a local path that is not there. A Hub id never is."""
    if not os.path.isabs(path):
        return False
    if any(mark in path for mark in "*?["):
        import glob  # only for wildcards

        return not os.path.exists(path) and not glob.glob(path, recursive=True)
    return not os.path.exists(path)


def shorten(path: str, folder: str | None = None) -> str:
    """An absolute path below the working directory as a relative one, for screens: never for files."""
    folder = folder or os.getcwd()
    if path == folder or not path.startswith(folder.rstrip(os.sep) + os.sep):
        return path
    return os.path.relpath(path, folder)
