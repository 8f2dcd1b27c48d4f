"""What llama.cpp takes beside the weights: keys and values of every slot, one pass of a prompt, its own structures.

Measured with xllamacpp 2026.10 on SmolLM2-135M: contexts of 1k to 8k, 1 to 16 slots. Pure arithmetic; this file
does not know weights (``packing.py``) or what is free (``footprint.py``).
"""

from __future__ import annotations

from mcp_core import llama_cpp
from mcp_core.models.architecture import Architecture
from mcp_core.models.kv_memory import KeyValueMemory
from mcp_core.models.served_load import ServedLoad
from mcp_core.recipe import Recipe

__all__ = ["IMPORTS_BYTES", "beside_weights"]

_MB = 10**6
# Resident memory of a worker after its imports: no torch, no transformers.
IMPORTS_BYTES = 90 * _MB
# llama.cpp's vocabulary and graph, our tokenizer, HTTP; and what huge pages (supervisor.py) round up, 12 MB of it.
_RUNTIME_BYTES = 60 * _MB
_F16_BYTES, _F32_BYTES = 2, 4
# A pass looks at so many tokens' places at once.
_KEPT_MULTIPLE = 256


def beside_weights(recipe: Recipe, architecture: Architecture, load: ServedLoad) -> tuple[KeyValueMemory, int, int]:
    """Keys and values, activations, runtime, in bytes. Keys and values are allocated whole when the model loads."""
    slots = max(llama_cpp.slots(recipe), load.concurrency)
    context = llama_cpp.slot_tokens(load.longest_allocation)
    per_token = architecture.kv_elements_per_token * _F16_BYTES
    rows = min(recipe.batching.step_tokens, llama_cpp.PASS_TOKENS, load.longest_prompt)
    activations = rows * 3 * (architecture.hidden + architecture.intermediate) * _F32_BYTES
    mask = rows * context * _F16_BYTES
    logits = slots * architecture.vocab * 2 * _F32_BYTES
    passing = activations + mask + logits + _scores_bytes(recipe, architecture, load, rows)
    return KeyValueMemory(per_token, slots * context * per_token), passing, _RUNTIME_BYTES


def _scores_bytes(recipe: Recipe, architecture: Architecture, load: ServedLoad, rows: int) -> int:
    """Without FlashAttention: every head's scores of a pass with all that is kept; a fifth beside was measured."""
    if llama_cpp.flash_attention(recipe):
        return 0
    kept = -(-load.context_tokens // _KEPT_MULTIPLE) * _KEPT_MULTIPLE
    return int(1.2 * rows * kept * architecture.heads * _F32_BYTES)
