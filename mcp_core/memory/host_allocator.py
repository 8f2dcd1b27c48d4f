"""Memory that libraries of a process with a model would keep: freed blocks, and kernels made for past shapes.

By default glibc keeps freed blocks of up to 32 MiB for reuse and gives threads arenas of their own, so a model
that is quantized weight by weight would end up resident at its dense size, and a long prompt's activations would
stay. oneDNN keeps a compiled kernel for every shape that it met, 1,024 of them: prompts of many lengths, or
LLM.int8's changing number of outliers, took 3 MB a length (measured with SmolLM2-135M, bf16, torch 2.13).
This file does not know what is loaded; without glibc only the second is bounded.
"""

from __future__ import annotations

import ctypes
import os

from mcp_core.recipe import SchemeName

__all__ = ["KERNELS_KEPT", "bound_kernel_caches", "return_large_blocks", "reuse_large_blocks"]

# Parameter numbers of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MIB = 2**20
_MAKE_LARGE_BLOCKS: frozenset[SchemeName] = frozenset(
    {
        "torchao-int8-weight-only",
        "torchao-int8-dynamic",
        "torchao-int8-static",
        "torchao-int8-static-smoothquant",
        "torchao-fp8-weight-only",
    }
)
# Holds what decoding and two prefill chunks of a Llama need (7 shapes each); a kernel is made again in about 1 ms.
KERNELS_KEPT = 32


def return_large_blocks(scheme: SchemeName = "none") -> None:
    """From now on blocks from 1 MiB on are mapped for themselves: resident memory is what is in use.

    A lower border costs time: with 128 KiB a small model's prefill took a fifth longer (SmolLM2-135M, 256 tokens,
    fresh pages for every activation). LLM.int8 has it all the same: its many short-lived sizes would leave holes of
    80 MB there. New threads share one arena; those that have one keep it: this comes early.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MIB // 8 if scheme == "bnb-int8" else _MIB)
        mallopt(_M_TRIM_THRESHOLD, 16 * _MIB)
        mallopt(_M_ARENA_MAX, 1)


def reuse_large_blocks(scheme: SchemeName) -> None:
    """Once the model is loaded: keep blocks for reuse where every step makes and frees large ones.

    These schemes unpack each layer's weights, or sum their products, in fresh blocks. Mapped anew each time they
    cost a page fault for every 4 KiB: a decode step took twice as long (SmolLM2-135M on one thread: int8
    weight-only 128 against 59 ms, int8 dynamic 295 against 125, fp8 weight-only 914 against 463), to keep 1 to
    33 MB less resident.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and scheme in _MAKE_LARGE_BLOCKS:
        mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)  # the most that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 64 * _MIB)


def bound_kernel_caches() -> None:
    """Let oneDNN, and torch's own cache before it, keep ``KERNELS_KEPT`` kernels. Before torch is imported.

    A user's own setting of the environment variables stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(KERNELS_KEPT))
