"""Host memory that a CPU run frees stays with the process, for the next step to use again.

glibc maps large blocks one by one and gives the end of its heap back to the system. A training step frees and takes
the same gigabytes each time, and the system has to find and clear every page of them at its first touch: 2.7 GB/s
where memory that is there takes 25 (docs/reference/performance.md). The peak stays what it was, since it comes where
activations fill the heap; what is given up is that the process becomes small again before it ends.

Source: mallopt(3). Elsewhere than on glibc nothing is done.
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""malloc.h"""


def keep_freed_memory() -> bool:
    """Let malloc serve all sizes from its heap, and never shrink it. Whether this C library does so."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
