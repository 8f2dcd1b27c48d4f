"""The C library's allocator in a process that holds a model: large blocks go back to the system when freed.

By default glibc keeps freed blocks of up to 32 MiB for reuse, so a model that is quantized weight by weight
would end up resident at its dense size, and a long prompt's activations would stay. This file does not know
what is loaded; without glibc it does nothing.
"""

from __future__ import annotations

import ctypes

__all__ = ["return_large_blocks"]

# Parameter numbers of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MIB = 2**20


def return_large_blocks() -> None:
    """From now on blocks from 1 MiB on are mapped for themselves: resident memory is what is in use."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MIB)
        mallopt(_M_TRIM_THRESHOLD, 16 * _MIB)
