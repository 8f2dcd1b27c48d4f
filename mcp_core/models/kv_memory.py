"""Bytes of keys and values by cache kind, and of what attention makes of them in passing. Pure arithmetic.

This file does not know how caches are built (``inference/kv_cache.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_core.models.architecture import DTYPE_BYTES, Architecture
from mcp_core.models.served_load import ServedLoad
from mcp_core.recipe import Recipe

__all__ = [
    "DEFAULT_WINDOW",
    "KeyValueMemory",
    "attention_over_past",
    "kept_tokens",
    "keys_and_values",
    "stored_bytes",
]

# An fp16 scale for each head of a token (inference/fp8.py).
_FP8_SCALE_BYTES = 2
# An offloaded cache keeps the running layer and the one that is being fetched on the device.
_LAYERS_ON_DEVICE = 2
# What kv.window and kv.bits mean when they are null; quanto and HQQ give this many values a scale and a zero
# point, and keep up to this many of the newest tokens dense (inference/kv_cache.py).
DEFAULT_WINDOW, _BITS = 512, 4
_GROUP, _RESIDUAL_TOKENS = 64, 128


@dataclass(frozen=True, slots=True)
class KeyValueMemory:
    """Bytes that one more token of a sequence adds, and bytes of all sequences on the device."""

    bytes_per_token: int
    total_bytes: int


def keys_and_values(recipe: Recipe, architecture: Architecture, load: ServedLoad, kind: str) -> KeyValueMemory:
    """Memory of the load's sequences; ``kind`` is the device's. Layers with a window of their own keep that."""
    stored, tokens = stored_bytes(recipe, architecture), kept_tokens(recipe, load)
    elements = architecture.kv_elements(tokens)
    if recipe.kv.kind == "static":  # allocated for every layer alike
        elements = architecture.kv_elements_per_token * tokens
    total = round(elements * stored)
    if recipe.kv.kind in ("quantized-quanto", "quantized-hqq"):
        dense = DTYPE_BYTES[recipe.dtype] - stored
        total += round(architecture.kv_elements(min(tokens, _RESIDUAL_TOKENS)) * dense)
    if recipe.kv.kind == "offloaded" and kind == "cuda":
        total = total * min(_LAYERS_ON_DEVICE, architecture.layers) // architecture.layers
    per_token = round(architecture.kv_elements_per_token * stored)
    return KeyValueMemory(per_token, total * load.concurrency)


def attention_over_past(recipe: Recipe, architecture: Architecture, load: ServedLoad, chunk: int, kind: str) -> int:
    """Bytes that one layer's attention makes for ``chunk`` queries of one sequence over all of its keys.

    While a token a step is decoded for every sequence at once, one layer's keys of all of them are copied.
    """
    item = DTYPE_BYTES[recipe.dtype]
    context = load.longest_allocation if recipe.kv.kind == "static" else _seen_tokens(recipe, load, chunk)
    keys = context * architecture.kv_heads * architecture.head_dim
    fixed = recipe.kv.kind in ("static", "off")
    grown = 0 if fixed else round(keys * stored_bytes(recipe, architecture))  # old and new keys side by side
    dequantized = keys * (2 * item + 4) if recipe.kv.kind.startswith("quantized") else 0
    repeats = chunk < context and architecture.kv_heads < architecture.heads  # a masked product wants equal heads
    repeated = 2 * context * architecture.heads * architecture.head_dim * item if repeats else 0
    mask = chunk * context * (1 + item)
    scores = architecture.heads * chunk * context * _score_bytes(item, kind) if recipe.attention == "eager" else 0
    return (grown + dequantized) * load.concurrency + repeated + mask + scores


def _score_bytes(item: int, kind: str) -> int:
    """A score, its softmax in fp32, and for 16 bits another copy: what the softmax reads, or what becomes of it."""
    if item == 4:
        return 2 * item + 4
    return item + 8 if kind == "cpu" else 2 * item + 4  # a host makes the input fp32 first


def stored_bytes(recipe: Recipe, architecture: Architecture) -> float:
    """Bytes of one stored element, its share of scales included."""
    match recipe.kv.kind:
        case "off":
            return 0
        case "quantized-fp8":
            return 1 + _FP8_SCALE_BYTES / architecture.head_dim
        case "quantized-quanto" | "quantized-hqq":
            return (recipe.kv.bits or _BITS) / 8 + 2 * DTYPE_BYTES[recipe.dtype] / _GROUP
        case _:
            return DTYPE_BYTES[recipe.dtype]


def kept_tokens(recipe: Recipe, load: ServedLoad) -> int:
    """Tokens of one sequence that the cache holds."""
    if recipe.kv.kind == "sliding":
        return min(load.context_tokens, recipe.kv.window or DEFAULT_WINDOW)
    return load.longest_allocation if recipe.kv.kind == "static" else load.context_tokens


def _seen_tokens(recipe: Recipe, load: ServedLoad, chunk: int) -> int:
    """Keys that a chunk of queries meets: a window's, and those of the chunk itself."""
    kept = kept_tokens(recipe, load)
    return min(load.context_tokens, kept + chunk) if recipe.kv.kind == "sliding" else kept
