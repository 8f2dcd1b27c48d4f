"""The C library's allocator while a model loads: large blocks go back to the system when they are freed.

By default glibc keeps freed blocks of up to 32 MiB for reuse, so a model that is quantized weight by weight
would end up resident at its dense size. This file does not know what is loaded; without glibc it does nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["large_blocks_returned"]

# Parameter numbers of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MIB = 2**20


@contextmanager
def large_blocks_returned() -> Iterator[None]:
    """Inside, blocks from 1 MiB on are mapped for themselves: resident memory is what is in use.

    Afterwards glibc keeps freed blocks again, as it does by itself in a long-running process: mapping every
    large activation anew would cost time.
    """
    _set(mmap_threshold_bytes=_MIB, trim_threshold_bytes=_MIB)
    try:
        yield
    finally:
        # The largest values that glibc's own adaption reaches; it is off once they have been set.
        _set(mmap_threshold_bytes=32 * _MIB, trim_threshold_bytes=64 * _MIB)


def _set(*, mmap_threshold_bytes: int, trim_threshold_bytes: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, mmap_threshold_bytes)
        mallopt(_M_TRIM_THRESHOLD, trim_threshold_bytes)
