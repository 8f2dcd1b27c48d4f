"""Bytes that a forward pass makes in passing: activations, logits, and what kernels copy of one matrix.

Pure arithmetic. This file does not know weights at rest (``packing.py``) or caches (``kv_memory.py``).
"""

from __future__ import annotations

from mcp_core.generation import PREFILL_CHUNK_TOKENS
from mcp_core.models.architecture import DTYPE_BYTES, Architecture
from mcp_core.models.kv_memory import attention_over_past
from mcp_core.models.packing import PackedWeights
from mcp_core.models.served_load import ServedLoad
from mcp_core.recipe import Recipe

__all__ = ["activation_bytes", "graph_sizes", "scratch_bytes"]

# Bytes a weight of the largest packed matrix while a product expands it, by the scheme's first word and the
# device. CPU: SmolLM2-135M and a 0.5 B shape. CUDA: H100, peaks of the 7B, 8B and 13B shapes less bf16's.
_EXPANDING_BYTES = {
    ("bnb", "cpu"): 4,
    ("torchao", "cpu"): 10,
    ("classic", "cpu"): 4,
    ("bnb", "cuda"): 3,
    ("torchao", "cuda"): 8,
}
# Of schemes unlike their family: CUDA as above; fp8 on a CPU is unpacked through fp32.
_EXPANDING_OF_SCHEME = {("bnb-int8", "cuda"): 8, ("torchao-fp8-weight-only", "cpu"): 32}


def activation_bytes(recipe: Recipe, architecture: Architecture, load: ServedLoad, kind: str) -> int:
    """The larger of attention's and the MLP's tensors in the widest step, and the logits of its sequences.

    The widest step is a chunk of a prompt (all that came so far where no cache is kept), of every sequence where
    static batches are padded, or a token of every sequence.
    """
    item, chunk = DTYPE_BYTES[recipe.dtype], min(PREFILL_CHUNK_TOKENS[kind], load.longest_prompt)
    if recipe.kv.kind == "off":
        chunk = load.context_tokens
    rows = max(chunk * (load.concurrency if recipe.batching.mode == "static" else 1), load.concurrency)
    stream = 3 * architecture.hidden
    intermediate = architecture.intermediate * max(1, architecture.active_experts)
    mlp = rows * (stream + 3 * intermediate) * item
    attention = rows * (stream + 2 * architecture.heads * architecture.head_dim) * item
    attention += attention_over_past(recipe, architecture, load, chunk, kind)
    logits = load.concurrency * architecture.vocab * (item + 2 * DTYPE_BYTES["fp32"])
    return max(mlp, attention) + logits + _recorded_bytes(recipe, architecture, kind)


def _recorded_bytes(recipe: Recipe, architecture: Architecture, kind: str) -> int:
    """Logits that each recorded decode step leaves in a place of its own, and those with prompts in two of all."""
    if recipe.compile == "off" or kind != "cuda":
        return 0
    most = 1 if recipe.batching.mode == "off" else recipe.batching.max_requests
    with_prompts = 1 + most if most > 1 else 1
    return (sum(graph_sizes(most)) + with_prompts) * architecture.vocab * DTYPE_BYTES[recipe.dtype]


def graph_sizes(most: int) -> tuple[int, ...]:
    """Batch sizes worth recording, up to ``most`` and that one: padding wastes at most a third."""
    sizes = [size for size in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256) if size < most]
    return (*sizes, most)


def scratch_bytes(recipe: Recipe, weights: PackedWeights, kind: str) -> int:
    """Copies of one matrix that kernels make: packed weights are expanded. Dense ones are read as they lie."""
    scheme = recipe.quantization.scheme
    family = _EXPANDING_BYTES.get((scheme.split("-")[0], kind), 0)
    expanding = _EXPANDING_OF_SCHEME.get((scheme, kind), family)
    return weights.largest_packed_parameters * expanding
