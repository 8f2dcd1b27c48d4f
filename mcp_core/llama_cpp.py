"""What engine llama.cpp reads of a Recipe: which fields it cannot honour, how many slots, how long each.

This file does not know how its server is started or asked (``inference/llama_cpp_server.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mcp_core.hardware import Hardware
from mcp_core.recipe import Recipe

__all__ = [
    "KV_TYPE",
    "LIBRARY",
    "PASS_TOKENS",
    "flash_attention",
    "refusals",
    "slot_tokens",
    "slots",
    "unread",
    "with_engine",
]

LIBRARY = "xllamacpp"
# llama.cpp's own default for keys and values, and the only type that a Recipe can ask for.
KV_TYPE = "f16"
# Most tokens of a prompt in one pass, llama.cpp's own default.
PASS_TOKENS = 512
# Every slot's keys and values are allocated when the model loads, so that batching.max_requests, which also counts
# waiting requests (64 by default), would take 6 GB for a model of 135M; measured decode no longer gains at 16.
MOST_SLOTS = 16
# llama.cpp rounds a slot's context up to this, and needs one token more than prompt and reply.
_CONTEXT_MULTIPLE = 256

_SOURCES = ("bundled", "gguf")
# Its FlashAttention, and without it.
_ATTENTION = ("sdpa", "eager")
# Field -> why llama.cpp does not read it; set to anything but its default it is refused.
_UNREAD: dict[str, str] = {
    "dtype": "llama.cpp computes in the types that the GGUF's weights have.",
    "kv.kind": f"llama.cpp allocates keys and values for the whole context, in {KV_TYPE}.",
    "switches.tf32": "that is torch's switch.",
    "switches.autocast": "that is torch's switch.",
    "switches.cudnn_benchmark": "that is torch's switch.",
    "compile": "llama.cpp is compiled already.",
    "batching.max_wait_ms": "llama.cpp waits for nobody.",
    "batching.kv_blocks": "llama.cpp keeps no pages: every slot has its own context.",
    "draft": "speculative decoding is built for transformers only.",
    "speculation": "speculative decoding is built for transformers only.",
}


def refusals(recipe: Recipe, hardware: Hardware) -> Iterator[tuple[str, str, str]]:
    """(field, reason, fix) of everything that a Recipe with engine llama.cpp asks in vain."""
    if LIBRARY not in hardware.libraries:
        install = "In this program's folder: .venv/bin/pip install -e '.[llamacpp]' (the package is xllamacpp)"
        yield "engine", f"llama.cpp needs {LIBRARY}, which is not installed.", install
    if recipe.model.source not in _SOURCES:
        reason = f"llama.cpp reads GGUF files; this model comes from {recipe.model.source}."
        yield "engine", reason, "Choose the bundled model or a .gguf file, or engine transformers."
    device = hardware.device(recipe.device)
    if device is not None and device.kind != "cpu":
        yield "device", f"the installed {LIBRARY} is built for CPUs.", "Set it to cpu."
    yield from unread(recipe)


def unread(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """The same of what llama.cpp cannot honour on any machine."""
    if recipe.batching.mode == "static":
        yield "batching.mode", "llama.cpp batches continuously or not at all.", "Choose continuous or off."
    if recipe.attention not in _ATTENTION:
        yield "attention", f"llama.cpp has no {recipe.attention}.", "Choose sdpa (its FlashAttention) or eager."
    default = Recipe()
    for field, reason in _UNREAD.items():
        if _value(recipe, field) != _value(default, field):
            yield field, reason, f"Leave it at {json.dumps(_value(default, field))}."


def with_engine(recipe: Recipe, engine: str) -> Recipe:
    """The Recipe for another engine. From and to llama.cpp what only one side reads goes back to its default."""
    if "llama.cpp" not in (engine, recipe.engine) or engine == recipe.engine:
        return recipe.replace({"engine": engine})
    default = Recipe()
    batching = recipe.batching.model_copy(
        update={
            "mode": "continuous" if recipe.batching.mode == "static" else recipe.batching.mode,
            "max_wait_ms": default.batching.max_wait_ms,
            "kv_blocks": default.batching.kv_blocks,
        }
    )
    kept = recipe.model_dump(mode="json", include={"model", "threads", "prefix_cache"})
    return Recipe.from_dict(kept).replace(
        {
            "engine": engine,
            "device": "cpu" if engine == "llama.cpp" else "auto",
            "quantization.scheme": "gguf" if engine == "llama.cpp" else "none",
            "kv.max_context": recipe.kv.max_context,
            "batching": batching.model_dump(mode="json"),
        }
    )


def flash_attention(recipe: Recipe) -> bool:
    """Whether attention is one kernel. Without, a long past is decoded faster, a prompt slower (docs/cpu.md)."""
    return recipe.attention != "eager"


def slots(recipe: Recipe) -> int:
    """Requests that are worked on at once."""
    return 1 if recipe.batching.mode == "off" else min(recipe.batching.max_requests, MOST_SLOTS)


def slot_tokens(max_context: int) -> int:
    """Tokens that one slot is allocated for, so that it holds prompt and reply of ``max_context``."""
    return -(-(max_context + 1) // _CONTEXT_MULTIPLE) * _CONTEXT_MULTIPLE


def _value(recipe: Recipe, field: str) -> Any:
    node: Any = recipe
    for name in field.split("."):
        node = getattr(node, name)
    return node
