"""Footprint: what a Recipe will take on a machine, computed before anything is loaded, and whether it fits.

Memory is computed for one sequence of ``context_tokens``, the most that ``batching.mode: off`` holds at once.
This file does not know how memory is measured (``serving/worker_memory.py``); measured runs judge it by
``peak_bytes``.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_core.errors import RecipeError
from mcp_core.generation import PREFILL_CHUNK_TOKENS
from mcp_core.hardware import Device, Hardware
from mcp_core.models.architecture import DTYPE_BYTES, Architecture, ResolvedModel
from mcp_core.models.kv_memory import attention_over_past, keys_and_values
from mcp_core.models.packing import PackedWeights, pack
from mcp_core.models.prepared import PREPARED_DTYPE
from mcp_core.models.stored_quantization import require_loadable_here
from mcp_core.recipe import Recipe

__all__ = ["Footprint", "estimate", "resolve_max_context"]

_DEFAULT_CONTEXT = 4096
_MIB = 2**20

# Measured with torch 2.13 and transformers 5.23 on SmolLM2-135M and a 0.5 B shape.
# Resident memory of a worker after its imports, before a model is loaded.
_IMPORTS_BYTES = 430 * _MIB
# Beside all tensors: tokenizer, allocator slack, kernels' scratch; on a GPU the CUDA context and cuBLAS.
_OVERHEAD_BYTES = {"cpu": 60 * _MIB, "cuda": 700 * _MIB}
# Scratch for one packed matrix, bytes a weight: while it is packed, and while a product expands it.
_PACKING_BYTES = 16
_EXPANDING_BYTES = 10
# Reading a GGUF's vocabulary into Python objects.
_GGUF_READER_BYTES = 80 * _MIB


@dataclass(frozen=True, slots=True)
class Footprint:
    """All sizes in bytes, on ``device``.

    ``peak_bytes`` is the highest while serving at a full context, the worker's imports excluded; it is the sum of
    ``parts`` (name, bytes). ``load_peak_bytes`` is the highest from start to ready, imports and, for a GGUF not
    yet prepared, preparing included. ``fits`` compares the larger of loading and serving with ``free_bytes``;
    ``reason`` says so with the numbers.
    """

    weights_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int
    activation_bytes: int
    overhead_bytes: int
    peak_bytes: int
    load_peak_bytes: int
    download_bytes: int
    prepare_bytes: int
    context_tokens: int
    device: str
    free_bytes: int
    total_bytes: int
    fits: bool
    reason: str
    parts: tuple[tuple[str, int], ...]


def resolve_max_context(recipe: Recipe, architecture: Architecture) -> int:
    """Longest prompt + reply in tokens: what the Recipe asks, else the model's own, at most 4096.

    Raises RecipeError when the Recipe asks for more than the model has.
    """
    asked = recipe.kv.max_context
    if asked is None:
        return min(architecture.context, _DEFAULT_CONTEXT)
    if asked > architecture.context:
        raise RecipeError(
            f"kv.max_context: {asked:,} tokens asked, the model's context is {architecture.context:,}.",
            f"Set it to at most {architecture.context}, or to null.",
        )
    return asked


def estimate(recipe: Recipe, resolved: ResolvedModel, hardware: Hardware) -> Footprint:
    """What ``recipe`` takes on ``hardware``. Raises RecipeError: context too long, no such device.

    Also where a quantized checkpoint cannot be loaded here (``stored_quantization.require_loadable_here``).
    """
    device = hardware.device(recipe.device)
    if device is None:
        there = ", ".join(each.id for each in hardware.devices)
        raise RecipeError(f"device: this machine has no {recipe.device}.", f"It has: {there}.")
    context = resolve_max_context(recipe, resolved.architecture)
    require_loadable_here(resolved.quantized, recipe, hardware)
    as_loaded = resolved.as_loaded(recipe.quantization, device, hardware)
    weights = pack(as_loaded, recipe.dtype, recipe.quantization, device.kind)
    kv = keys_and_values(recipe, resolved.architecture, context, device.kind)
    activation = _activation_bytes(recipe, resolved.architecture, context, device.kind)
    overhead = _OVERHEAD_BYTES[device.kind] + _scratch_bytes(recipe, weights, device.kind)
    parts = (
        ("Linear layers", weights.linear_bytes),
        ("Embeddings and output layer", weights.embedding_bytes),
        ("Norms and biases", weights.other_bytes),
        ("Keys and values", kv.total_bytes),
        ("Activations", activation),
        ("Runtime", overhead),
    )
    peak = sum(size for _, size in parts)
    load_peak = _load_peak_bytes(resolved, weights, device.kind)
    fits, reason = _judge(peak, load_peak, resolved, device, hardware)
    return Footprint(
        weights_bytes=weights.total_bytes,
        kv_bytes_per_token=kv.bytes_per_token,
        kv_bytes=kv.total_bytes,
        activation_bytes=activation,
        overhead_bytes=overhead,
        peak_bytes=peak,
        load_peak_bytes=load_peak,
        download_bytes=resolved.download_bytes,
        prepare_bytes=resolved.prepare_bytes,
        context_tokens=context,
        device=device.id,
        free_bytes=device.memory_free_bytes,
        total_bytes=device.memory_total_bytes,
        fits=fits,
        reason=reason,
        parts=parts,
    )


def _activation_bytes(recipe: Recipe, architecture: Architecture, context: int, kind: str) -> int:
    """The larger of attention's and the MLP's tensors in the last prefill chunk, and the logits of one token."""
    item, chunk = DTYPE_BYTES[recipe.dtype], min(PREFILL_CHUNK_TOKENS[kind], context)
    stream = 3 * architecture.hidden
    mlp = chunk * (stream + 3 * architecture.intermediate) * item
    attention = chunk * (stream + 2 * architecture.heads * architecture.head_dim) * item
    attention += attention_over_past(recipe, architecture, context, chunk)
    logits = architecture.vocab * (item + 2 * DTYPE_BYTES["fp32"])
    return max(mlp, attention) + logits


def _scratch_bytes(recipe: Recipe, weights: PackedWeights, kind: str) -> int:
    """Copies of one matrix that kernels make: on a CPU oneDNN reorders 16-bit weights; packed ones are expanded."""
    reordered = weights.largest_tensor_bytes if kind == "cpu" and recipe.dtype != "fp32" else 0
    return max(reordered, weights.largest_packed_parameters * _EXPANDING_BYTES)


def _load_peak_bytes(resolved: ResolvedModel, weights: PackedWeights, kind: str) -> int:
    """On the device: all weights while the last is packed or read; on the host imports and preparing too."""
    passing = max(weights.largest_packed_parameters * _PACKING_BYTES, weights.largest_tensor_bytes)
    loading = max(weights.total_bytes, weights.arriving_bytes) + passing + _OVERHEAD_BYTES[kind]
    return _IMPORTS_BYTES + max(loading, _preparing_bytes(resolved)) if kind == "cpu" else loading


def _preparing_bytes(resolved: ResolvedModel) -> int:
    """Host memory for dequantizing a GGUF: the whole model in PREPARED_DTYPE, the file, its largest tensor."""
    if resolved.gguf_file is None or resolved.folder is not None:
        return 0
    tensors = resolved.architecture.tensors
    dense = sum(each.parameters for each in tensors) + max(each.parameters for each in tensors)
    return dense * DTYPE_BYTES[PREPARED_DTYPE] + resolved.gguf_file.stat().st_size + _GGUF_READER_BYTES


def _judge(
    peak: int, load_peak: int, resolved: ResolvedModel, device: Device, hardware: Hardware
) -> tuple[bool, str]:
    """Whether it fits what is free now, and the numbers in words."""
    imports = _IMPORTS_BYTES if device.kind == "cpu" else 0
    needs = [_Need(device, load_peak, "to load"), _Need(device, peak + imports, "to serve")]
    host = hardware.device("cpu")
    if device.kind == "cuda" and host is not None:
        needs.append(_Need(host, _IMPORTS_BYTES + _preparing_bytes(resolved), "to prepare"))
    worst = max(needs, key=lambda need: need.needed_bytes / max(1, need.device.memory_free_bytes))
    return worst.fits, str(worst)


@dataclass(frozen=True, slots=True)
class _Need:
    device: Device
    needed_bytes: int
    purpose: str

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.device.memory_free_bytes

    def __str__(self) -> str:
        free, total = self.device.memory_free_bytes, self.device.memory_total_bytes
        verdict = "Fits" if self.fits else "Does not fit"
        return (
            f"{verdict}: needs {_gb(self.needed_bytes)} {self.purpose}, "
            f"{_gb(free)} free of {_gb(total)} on {self.device.id}."
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.1f} GB"
