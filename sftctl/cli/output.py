"""Files that a command writes where it is told to: never over another one unless that is asked for."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sftctl.errors import ConfigError, Problem


def write_file(path: Path, text: str, *, force: bool) -> None:
    """Write `text` to `path` whole or not at all. Raises ConfigError: it exists, or cannot be written."""
    if path.is_dir():
        raise ConfigError(Problem("", f"{path} is a folder", help="name a file in it"))
    if path.exists() and not force:
        raise ConfigError(Problem("", f"{path} exists already", help="choose another name, or add --force"))
    aside = ""
    try:
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
    except OSError as error:
        if aside and os.path.exists(aside):
            os.unlink(aside)
        reason = error.strerror or str(error)
        raise ConfigError(
            Problem("", f"{path} cannot be written: {reason.lower()}", help="choose another place")
        ) from None


def _umask() -> int:
    """The mask that a file made the plain way would have had; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
