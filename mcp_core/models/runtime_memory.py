"""Bytes that a worker takes beside all tensors: libraries, tokenizer, kernels made for shapes, the CUDA context.

Measured, not derived: with torch 2.13, transformers 5.23 and bitsandbytes 0.50 by ``tests/bench/footprint.py`` on
SmolLM2-135M and a 0.5 B shape; CUDA on an H100 with the 7B, 8B and 13B shapes. This file does not know a model.
"""

from __future__ import annotations

from mcp_core.recipe import Recipe, SchemeName

__all__ = ["IMPORTS_BYTES", "runtime_bytes"]

_MB = 10**6

# Resident memory of a worker after its imports, before a model is loaded.
IMPORTS_BYTES = 430 * 2**20
# Tokenizer, chat template, HTTP, allocator slack; on a GPU the driver's context, kernels, cuBLAS and slack.
_BASE_BYTES = {"cpu": 43 * _MB, "cuda": 815 * _MB}
# oneDNN's kernels for 16-bit products, as many as host_allocator.KERNELS_KEPT, and what lies between them.
_SIXTEEN_BIT_KERNELS_BYTES = 20 * _MB
# Graphs of steps, and the memory they share: 0.27 to 0.37 GB more than without (H100, 7B, 1 to 32 sequences).
_RECORDED_BYTES = 300 * _MB
# What a scheme's library loads at its first use, by the scheme's first word.
_LIBRARY_BYTES = {"bnb": 36 * _MB}
# LLM.int8 computes outlier columns apart, in products of a changing width.
_OUTLIER_KERNELS_BYTES = 22 * _MB
# Freed blocks that host_allocator.reuse_large_blocks keeps, in 16 bits; a static scheme's calibration leaves some.
_KEPT_BLOCKS_BYTES: dict[SchemeName, int] = {
    "torchao-int8-dynamic": 12 * _MB,
    "torchao-int8-static": 35 * _MB,
    "torchao-int8-static-smoothquant": 35 * _MB,
    "torchao-fp8-weight-only": 50 * _MB,
}
# Without a cache every token is a product of another length, with kernels of its own.
_LENGTHS_KERNELS_BYTES = 40 * _MB
# torch.compile's own modules, guards and code: an allowance midway between a start that finds what was compiled and
# one that compiles (SmolLM2-135M: 96 and 158 MB in bf16, 125 and 190 in fp32; with a step of many 137 and 248).
_COMPILED_BYTES = {"fp32": 157 * _MB, "bf16": 127 * _MB, "fp16": 127 * _MB}
_COMPILED_MANY_BYTES = 66 * _MB


def runtime_bytes(recipe: Recipe, kind: str) -> int:
    """On the device of that kind; on a GPU what stays on the host is not in it."""
    if kind == "cuda":
        return _BASE_BYTES[kind] + (_RECORDED_BYTES if recipe.compile != "off" else 0)
    scheme = recipe.quantization.scheme
    library = _LIBRARY_BYTES.get(scheme.split("-")[0], 0)
    kernels = _sixteen_bit_bytes(recipe)
    outliers = _OUTLIER_KERNELS_BYTES if scheme == "bnb-int8" else 0
    return _BASE_BYTES[kind] + library + kernels + outliers + _compiled_bytes(recipe)


def _sixteen_bit_bytes(recipe: Recipe) -> int:
    if recipe.dtype == "fp32":
        return 0
    kept = _KEPT_BLOCKS_BYTES.get(recipe.quantization.scheme, 0)
    return _SIXTEEN_BIT_KERNELS_BYTES + kept + (_LENGTHS_KERNELS_BYTES if recipe.kv.kind == "off" else 0)


def _compiled_bytes(recipe: Recipe) -> int:
    """On a CPU; on a GPU it was not measured apart."""
    if recipe.compile == "off":
        return 0
    many = _COMPILED_MANY_BYTES if recipe.batching.mode == "continuous" else 0
    return _COMPILED_BYTES[recipe.dtype] + many
