"""Memory of a process that holds two models one after the other and makes large tensors all the time in between.

This file does not know what is loaded or scored.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mcp_core.errors import OutOfMemory
from mcp_core.models.load_errors import is_out_of_memory

__all__ = ["memory_watched", "release", "reuse_freed_blocks"]

# Parameter numbers of mallopt(3), and the largest threshold that glibc takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK, _KEPT = 32 * 2**20, 2**30


def release() -> None:
    """Freed tensors go back to the device and to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def reuse_freed_blocks() -> None:
    """Keep freed blocks for the next tensor, which loading turned off (``memory/host_allocator.py``).

    Logits and their float64 copies come and go by the window; mapped anew each time, their page faults took a third
    of all processor time (measured: 19 s of 12,000 positions, 0.4 s so).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


@contextmanager
def memory_watched(doing: str) -> Iterator[None]:
    """Raise OutOfMemory, saying what was being done when memory ran out."""
    hint = "Choose another scheme or a smaller model, or free memory on this device."
    try:
        yield
    except OutOfMemory as error:
        raise OutOfMemory(f"Memory ran out while {doing}.", hint) from error
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"Memory ran out while {doing}.", hint) from error
        raise
