"""Memory that a training step frees is kept for the next one, in place of being given back and asked for again."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's mallopt (malloc.h)."""

_NEVER = 2**31 - 1
"""The largest value that mallopt takes."""
_LARGEST_DYNAMIC = 32 * 2**20
"""The threshold that glibc itself comes to in a process that frees large blocks (DEFAULT_MMAP_THRESHOLD_MAX)."""

_OWN_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Let glibc's malloc keep freed memory within a block; elsewhere, and where the user has set it, change nothing.

    By default the memory of activations and gradients goes back to the system after each step, and every page of it has
    to be asked for and cleared anew, a quarter of the processor time of a step of MobileNetV2 (benchmarks/speed.md). No
    number changes, and the peak of memory hardly does. At the end it is given back.
    """
    libc = None if any(name in os.environ for name in _OWN_SETTINGS) else _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    if not libc.mallopt(_MMAP_THRESHOLD, _NEVER):  # older versions have a largest value
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_DYNAMIC)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_DYNAMIC)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_DYNAMIC)
        libc.malloc_trim(0)


def _glibc() -> Any:
    """Return the C library of this process, None where it is not glibc."""
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError):
        libc = ctypes.CDLL(None)
        return libc if all(hasattr(libc, name) for name in ("mallopt", "malloc_trim")) else None
    return None
