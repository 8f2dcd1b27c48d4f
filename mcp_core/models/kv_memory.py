"""Bytes of keys and values by cache kind, and of what attention makes of them in passing. Pure arithmetic.

This file does not know how many sequences there are (one) or how caches are built (``inference/kv_cache.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_core.models.architecture import DTYPE_BYTES, Architecture
from mcp_core.recipe import Recipe

__all__ = ["KeyValueMemory", "attention_over_past", "keys_and_values"]

# transformers' fp8 cache: one fp32 scale for a layer's keys and one for its values.
_FP8_SCALES_BYTES = 2 * 4
# An offloaded cache keeps the running layer and the one that is being fetched on the device.
_LAYERS_ON_DEVICE = 2


@dataclass(frozen=True, slots=True)
class KeyValueMemory:
    """Bytes that one token adds, and bytes on the device at a full context."""

    bytes_per_token: int
    total_bytes: int


def keys_and_values(recipe: Recipe, architecture: Architecture, context: int, kind: str) -> KeyValueMemory:
    """Memory of one sequence of ``context`` tokens; ``kind`` is the device's. Static is allocated whole at once."""
    per_token = architecture.kv_elements_per_token * _stored_bytes(recipe)
    total = per_token * context
    if recipe.kv.kind == "quantized-fp8":
        total += architecture.layers * _FP8_SCALES_BYTES
    if recipe.kv.kind == "offloaded" and kind == "cuda":
        total = total * min(_LAYERS_ON_DEVICE, architecture.layers) // architecture.layers
    return KeyValueMemory(per_token, total)


def attention_over_past(recipe: Recipe, architecture: Architecture, context: int, chunk: int) -> int:
    """Bytes that one layer's attention makes for ``chunk`` queries over ``context`` keys."""
    item = DTYPE_BYTES[recipe.dtype]
    keys = context * architecture.kv_heads * architecture.head_dim
    grown = 0 if recipe.kv.kind == "static" else keys * _stored_bytes(recipe)  # old and new keys side by side
    dequantized = keys * (2 * item + 4) if recipe.kv.kind == "quantized-fp8" else 0
    repeats = chunk < context and architecture.kv_heads < architecture.heads  # a masked product wants equal heads
    repeated = 2 * context * architecture.heads * architecture.head_dim * item if repeats else 0
    mask = chunk * context * (1 + item)
    scores = architecture.heads * chunk * context * (2 * item + 4) if recipe.attention == "eager" else 0
    return grown + dequantized + repeated + mask + scores


def _stored_bytes(recipe: Recipe) -> int:
    return 1 if recipe.kv.kind == "quantized-fp8" else DTYPE_BYTES[recipe.dtype]
