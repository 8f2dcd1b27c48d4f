"""Footprint: what a Recipe will take on a machine, computed before anything is loaded, and whether it fits.

Memory is computed for a ServedLoad; without one for a sequence as long as the context, the most that
``batching.mode: off`` holds at once. This file does not know how memory is measured
(``serving/worker_memory.py``); measured runs judge it by ``peak_bytes``, and correct its runtime term by what they
were off (``models/correction.py``).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mcp_core.errors import RecipeError
from mcp_core.hardware import Device, Hardware
from mcp_core.models import llama_cpp_memory
from mcp_core.models.activation_memory import activation_bytes, scratch_bytes
from mcp_core.models.architecture import DTYPE_BYTES, Architecture, ResolvedModel
from mcp_core.models.attention_support import require_attention_of
from mcp_core.models.calibration_memory import calibrating_bytes
from mcp_core.models.correction import NONE, Correction
from mcp_core.models.draft_memory import Draft
from mcp_core.models.kv_memory import KeyValueMemory, keys_and_values
from mcp_core.models.kv_pool import page_bytes, pool_pages
from mcp_core.models.packing import ModuleSize, PackedWeights, module_sizes, pack
from mcp_core.models.prepared import PREPARED_DTYPE
from mcp_core.models.runtime_memory import IMPORTS_BYTES, runtime_bytes
from mcp_core.models.served_load import ServedLoad
from mcp_core.models.stored_quantization import require_loadable_here
from mcp_core.recipe import Recipe
from mcp_core.results import Prediction

__all__ = ["Footprint", "Predictor", "estimate", "resolve_max_context"]

_DEFAULT_CONTEXT = 4096
_MIB = 2**20

# Measured with torch 2.13 and transformers 5.23 on SmolLM2-135M and a 0.5 B shape.
# Scratch for one packed matrix, bytes a weight, while it is packed.
_PACKING_BYTES = 16
# Reading a GGUF's vocabulary into Python objects.
_GGUF_READER_BYTES = 80 * _MIB


@dataclass(frozen=True, slots=True)
class Footprint:
    """All sizes in bytes, on ``device``, for ``concurrency`` sequences of ``context_tokens``.

    ``peak_bytes`` is the highest while serving them, the worker's imports excluded; it is the sum of ``parts``
    (name, bytes). ``imports_bytes`` is what the host holds beside it. ``correction`` is in the runtime's part.
    ``load_peak_bytes`` is the highest from start to ready, imports and, for a GGUF not yet prepared, preparing
    included. A draft model is a part of its own, its keys and values with it. ``fits`` compares the larger of
    loading and serving with ``free_bytes``; ``reason`` says so with the numbers.
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
    concurrency: int = 1
    correction: Correction = NONE
    imports_bytes: int = 0
    draft_weights_bytes: int = 0

    def as_prediction(self) -> Prediction:
        """What a Run keeps of it."""
        return Prediction(
            weights_bytes=self.weights_bytes,
            peak_bytes=self.peak_bytes,
            load_peak_bytes=self.load_peak_bytes,
            context_tokens=self.context_tokens,
        )


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


def estimate(
    recipe: Recipe,
    resolved: ResolvedModel,
    hardware: Hardware,
    load: ServedLoad | None = None,
    correction: Correction = NONE,
    draft: Draft | None = None,
) -> Footprint:
    """What ``recipe`` takes on ``hardware`` under ``load``. Raises as ``Predictor``."""
    return Predictor(recipe, resolved, hardware, correction, draft).at(load)


class Predictor:
    """One Recipe on one machine; its weights are counted once, so that many loads can be asked about.

    ``draft`` is the Recipe's draft model (``draft_memory.draft_of``), without which that is not counted.
    Raises RecipeError: context too long, no such device, attention that the model has not, or a quantized
    checkpoint that cannot be loaded here (``stored_quantization.require_loadable_here``).
    """

    def __init__(
        self,
        recipe: Recipe,
        resolved: ResolvedModel,
        hardware: Hardware,
        correction: Correction = NONE,
        draft: Draft | None = None,
    ) -> None:
        device = hardware.device(recipe.device)
        if device is None:
            there = ", ".join(each.id for each in hardware.devices)
            raise RecipeError(f"device: this machine has no {recipe.device}.", f"It has: {there}.")
        require_loadable_here(resolved.quantized, recipe, hardware)
        require_attention_of(resolved.architecture.model_type, recipe)
        self.recipe, self.architecture, self.device = recipe, resolved.architecture, device
        self.max_context = resolve_max_context(recipe, resolved.architecture)
        self._resolved, self._hardware, self._correction = resolved, hardware, correction
        self._draft = draft
        self._as_loaded = resolved.as_loaded(recipe.quantization, device, hardware)
        self._computing = resolved.computed_by(recipe, device, hardware)

    @functools.cached_property
    def weights(self) -> PackedWeights:
        """All of the model's, packed."""
        return pack(self._as_loaded, self.recipe.dtype, self.recipe.quantization, self.device.kind)

    @functools.cached_property
    def modules(self) -> tuple[ModuleSize, ...]:
        """The same module by module."""
        return module_sizes(self._as_loaded, self.recipe.dtype, self.recipe.quantization, self.device.kind)

    def at(self, load: ServedLoad | None = None) -> Footprint:
        """Memory under this load; None is one sequence of ``max_context`` tokens."""
        load = load or ServedLoad(self.max_context)
        weights, device = self.weights, self.device
        kv, activation, overhead = self._beside_weights(load)
        overhead = max(0, overhead + self._correction.bytes)
        parts = (
            ("Linear layers", weights.linear_bytes - self._unwritten_bytes),
            *((("Experts and routers", weights.expert_bytes),) if weights.expert_bytes else ()),
            ("Embeddings and output layer", weights.embedding_bytes),
            ("Norms and biases", weights.other_bytes),
            ("Keys and values", max(kv.total_bytes, self._pool_bytes)),
            ("Activations", activation),
            ("Runtime", overhead),
            *self._draft_parts(load),
        )
        peak, load_peak = sum(size for _, size in parts), self._load_peak_bytes
        fits, reason = self._judge(peak, load_peak)
        return Footprint(
            weights_bytes=weights.total_bytes,
            kv_bytes_per_token=kv.bytes_per_token,
            kv_bytes=max(kv.total_bytes, self._pool_bytes),
            activation_bytes=activation,
            overhead_bytes=overhead,
            peak_bytes=peak,
            load_peak_bytes=load_peak,
            download_bytes=sum(each.download_bytes for each in self._models),
            prepare_bytes=0 if self._as_stored else sum(each.prepare_bytes for each in self._models),
            context_tokens=load.context_tokens,
            device=device.id,
            free_bytes=device.memory_free_bytes,
            total_bytes=device.memory_total_bytes,
            fits=fits,
            reason=reason,
            parts=parts,
            concurrency=load.concurrency,
            correction=self._correction,
            imports_bytes=self._imports_bytes if device.kind == "cpu" else 0,
            draft_weights_bytes=self._draft_weights.total_bytes if self._draft_weights else 0,
        )

    @property
    def _models(self) -> tuple[ResolvedModel, ...]:
        """What is fetched and loaded, in that order."""
        return (self._resolved,) if self._draft is None else (self._resolved, self._draft.resolved)

    @functools.cached_property
    def _draft_weights(self) -> PackedWeights | None:
        return None if self._draft is None else self._draft.weights(self.device.kind)

    def _draft_parts(self, load: ServedLoad) -> tuple[tuple[str, int], ...]:
        if self._draft is None or self._draft_weights is None:
            return ()
        kv = self._draft.kv_bytes(load, self.device.kind)
        return (("Draft model", self._draft_weights.total_bytes + kv),)

    @property
    def _as_stored(self) -> bool:
        """Whether the file's own weights are computed with: nothing is prepared, and torch is not imported."""
        return self.recipe.engine == "llama.cpp"

    @property
    def _imports_bytes(self) -> int:
        """Host memory that the worker's libraries take before anything is loaded."""
        return llama_cpp_memory.IMPORTS_BYTES if self._as_stored else IMPORTS_BYTES

    def _beside_weights(self, load: ServedLoad) -> tuple[KeyValueMemory, int, int]:
        """Keys and values, activations, and the rest."""
        recipe, kind = self._computing, self.device.kind
        if self._as_stored:
            return llama_cpp_memory.beside_weights(recipe, self.architecture, load)
        overhead = runtime_bytes(recipe, kind) + scratch_bytes(recipe, self.weights, kind)
        kv = keys_and_values(recipe, self.architecture, load, kind)
        return kv, activation_bytes(recipe, self.architecture, load, kind), overhead

    @functools.cached_property
    def _pool_bytes(self) -> int:
        """A paged engine allocates its pool whole on a device; on a host only pages that were used are resident."""
        if self.device.kind == "cpu" or not self.recipe.is_paged:
            return 0
        free_bytes = self.device.memory_free_bytes - self.weights.total_bytes
        pages = pool_pages(self.recipe, self.architecture, self.max_context, self.device.kind, free_bytes)
        return (pages + 1) * page_bytes(self.recipe, self.architecture)

    @functools.cached_property
    def _unwritten_bytes(self) -> int:
        """torch's classic kernels pad matrices to whole blocks that are never written.

        In a block that is mapped for itself (``memory/host_allocator.py``) those pages are not resident; a smaller
        one reuses pages that are.
        """
        if self.recipe.quantization.scheme != "classic-dynamic":
            return 0
        packed = (module for module in self.modules if module.packed and module.bytes >= _MIB)
        return sum(module.bytes - module.parameters for module in packed)

    @functools.cached_property
    def _load_peak_bytes(self) -> int:
        """On the device: all weights while the last is packed or read, the draft's after them; on the host imports
        and preparing too."""
        weights, kind = self.weights, self.device.kind
        if self._as_stored:
            kv, _, runtime = self._beside_weights(ServedLoad(self.max_context))
            return llama_cpp_memory.IMPORTS_BYTES + weights.total_bytes + kv.total_bytes + runtime
        passing = max(
            weights.largest_packed_parameters * _PACKING_BYTES,
            weights.largest_tensor_bytes,
            calibrating_bytes(self.recipe, self.architecture),
        )
        loading = max(weights.total_bytes, weights.arriving_bytes) + passing
        preparing = _preparing_bytes(self._resolved)
        if self._draft is not None and (draft := self._draft_weights) is not None:
            loading = max(loading, weights.total_bytes + draft.total_bytes + draft.largest_tensor_bytes)
            preparing = max(preparing, weights.total_bytes + _preparing_bytes(self._draft.resolved))
        loading += runtime_bytes(self._computing, kind)
        return IMPORTS_BYTES + max(loading, preparing) if kind == "cpu" else loading

    def _judge(self, peak: int, load_peak: int) -> tuple[bool, str]:
        """Whether it fits what is free now, and the numbers in words."""
        device, host = self.device, self._hardware.device("cpu")
        imports = self._imports_bytes
        needs = [
            _Need(device, load_peak, "to load"),
            _Need(device, peak, "to serve")
            if device.kind == "cuda"
            else _Need(device, peak + imports, "to serve, the program itself included"),
        ]
        if device.kind == "cuda" and host is not None:
            needs.append(_Need(host, imports + max(map(_preparing_bytes, self._models)), "to prepare"))
        worst = max(needs, key=lambda need: need.needed_bytes / max(1, need.device.memory_free_bytes))
        return worst.fits, str(worst)


def _preparing_bytes(resolved: ResolvedModel) -> int:
    """Host memory for dequantizing a GGUF: the whole model in PREPARED_DTYPE, the file, its largest tensor."""
    if resolved.gguf_file is None or resolved.folder is not None:
        return 0
    tensors = resolved.architecture.tensors
    dense = sum(each.parameters for each in tensors) + max(each.parameters for each in tensors)
    return dense * DTYPE_BYTES[PREPARED_DTYPE] + resolved.gguf_file.stat().st_size + _GGUF_READER_BYTES


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
