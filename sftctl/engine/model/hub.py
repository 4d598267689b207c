"""Whether the model hub can be asked, found out once and fast.

Without a network, the hub's client retries every request for 23 seconds (measured: five retries, 1 to 8 s apart)
before it looks into its cache. One connection attempt of at most three seconds, made once a process, tells
beforehand: then only the cache is read, and what it lacks is an error at once.
"""

from __future__ import annotations

import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

CONNECT_SECONDS = 3.0

UNREACHABLE = "{name} is not a folder here and not in the local cache, and the Hub cannot be reached"
UNREACHABLE_HELP = "check the name and the network, or give a local folder"


def is_local(name_or_path: str) -> bool:
    """Whether this names a folder of this machine and not a Hub id: it exists, or cannot be an id (`a` or `a/b`)."""
    if Path(name_or_path).exists():
        return True
    return name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1 or "\\" in name_or_path


@cache
def cache_only() -> bool:
    """True where the hub cannot be reached (or HF_HUB_OFFLINE says so) and only its local cache is to be read."""
    if constants.is_offline_mode():
        return True
    if getproxies():
        return False
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return True
    return False
