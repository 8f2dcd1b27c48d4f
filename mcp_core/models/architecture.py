"""Architecture: a model's tensors and sizes, known before anything is loaded.

This file does not know where the numbers come from (``catalog.py``) or what memory there is (``footprint.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mcp_core.hardware import Device, Hardware
from mcp_core.models.stored_quantization import StoredQuantization
from mcp_core.recipe import DType, ModelRef, Quantization, Recipe
from mcp_core.schemes import SCHEMES

__all__ = ["DTYPE_BYTES", "LINEAR_EXPERTS", "PACKED_GGUF", "Architecture", "ResolvedModel", "TensorInfo"]

# llama.cpp's architectures whose GGUF transformers 5.23 can keep packed, with kernels from the Hub; none of them is
# loaded here (headers.py), so that every GGUF is dequantized.
PACKED_GGUF = ("lfm2", "qwen35", "qwen35moe")
_DENSE_GGUF_TYPES = ("F32", "F16", "BF16")
DTYPE_BYTES: dict[DType, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
# Mixtures of experts that are loaded with linear layers for experts when a scheme is to pack them. transformers
# fuses the experts of a layer into one parameter, which no scheme packs; in other models they stay so, and dense.
LINEAR_EXPERTS = frozenset({"olmoe", "qwen2_moe", "qwen3_moe"})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One parameter of a model: transformers' name of it and its dense shape.

    ``stored_bytes`` is what it and its scales occupy in a quantized checkpoint or a GGUF; None if dense.
    """

    name: str
    shape: tuple[int, ...]
    stored_bytes: int | None = None

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of one causal language model. ``tensors`` lists every parameter once (tied ones once).

    ``window_layers`` of its layers keep keys and values of the last ``window`` tokens only. ``active_experts``
    is how many experts work on a token; 0 where the model is no mixture of experts.
    """

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    tied: bool
    native_dtype: DType
    tensors: tuple[TensorInfo, ...]
    window: int | None = None
    window_layers: int = 0
    active_experts: int = 0

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def kv_elements_per_token(self) -> int:
        """Key and value elements that one token adds: 2 x layers x kv_heads x head_dim."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def kv_elements(self, tokens: int) -> int:
        """Key and value elements that are kept for ``tokens`` tokens, layers with a window counted with theirs."""
        kept = tokens if self.window is None else min(tokens, self.window)
        by_layer = 2 * self.kv_heads * self.head_dim
        return by_layer * ((self.layers - self.window_layers) * tokens + self.window_layers * kept)


def _taken_apart(tensor: TensorInfo) -> Iterator[TensorInfo]:
    owner, _, name = tensor.name.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(name)
    if parts is None or len(tensor.shape) != 3:
        yield tensor
        return
    experts, rows, columns = tensor.shape
    for expert in range(experts):
        for part in parts:
            yield TensorInfo(f"{owner}.{expert}.{part}.weight", (rows // len(parts), columns))


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A ModelRef that has been looked up: what it is, where its files are, what is still to be done.

    ``folder`` holds dense safetensors, config.json and tokenizer once everything is on this machine; None for
    a random-weight shape, a Hub model not yet downloaded and a GGUF not yet prepared. ``gguf_file`` is the
    source of a GGUF. ``ref.sha256`` is filled in wherever the content is on this machine. ``quantized`` is set
    where the checkpoint came quantized; ``gguf_type`` is the type of a GGUF's weights, as Q4_1, and
    ``stored_tensors`` are its tensors with their bytes in the file.
    """

    ref: ModelRef
    title: str
    architecture: Architecture
    folder: Path | None = None
    gguf_file: Path | None = None
    download_bytes: int = 0
    prepare_bytes: int = 0
    quantized: StoredQuantization | None = None
    gguf_type: str | None = None
    stored_tensors: tuple[TensorInfo, ...] = ()

    def as_loaded(self, quantization: Quantization, device: Device, hardware: Hardware) -> Architecture:
        """The architecture with its tensors as this device will hold them, before a scheme packs them.

        Quantized weights that cannot stay packed there are dense, those of a GGUF are what its file has where
        llama.cpp computes with them, and fused experts that a scheme is to pack are taken apart.
        """
        tensors, scheme = self.architecture.tensors, SCHEMES.get(quantization.scheme)
        if quantization.scheme == "gguf" and self.stored_tensors:
            tensors = self.stored_tensors
        if self.quantized and self.quantized.why_expanded(device, hardware.libraries):
            tensors = tuple(TensorInfo(each.name, each.shape) for each in tensors)
        if self.architecture.model_type in LINEAR_EXPERTS and scheme and scheme.apply:
            tensors = tuple(part for each in tensors for part in _taken_apart(each))
        return replace(self.architecture, tensors=tensors)

    def computed_by(self, recipe: Recipe, device: Device, hardware: Hardware) -> Recipe:
        """``recipe`` with the scheme whose kernels the checkpoint's own packed weights are computed with."""
        stored = self.quantized
        if stored is None or stored.computes_as == "none" or stored.why_expanded(device, hardware.libraries):
            return recipe
        return recipe.model_copy(update={"quantization": Quantization(scheme=stored.computes_as)})

    def comes_as(self, recipe: Recipe, device: Device, hardware: Hardware) -> str:
        """What becomes of the weights' own quantization here, in words; empty where they are not quantized."""
        if self.gguf_type is not None and recipe.engine == "llama.cpp":
            return f"A GGUF of {self.gguf_type}: llama.cpp computes with its weights as they are."
        if self.gguf_type is not None and self.gguf_type not in _DENSE_GGUF_TYPES:
            return (
                f"A GGUF of {self.gguf_type}: its weights are expanded to {recipe.dtype}, since transformers keeps "
                f"only {', '.join(PACKED_GGUF)} packed. Deploys as llama.cpp: this file as it is."
            )
        if self.quantized is None:
            return ""
        why = self.quantized.why_expanded(device, hardware.libraries)
        becomes = f"expanded to {recipe.dtype}: {why}" if why else "loaded so"
        return (
            f"The checkpoint comes quantized ({self.quantized.label}) and is {becomes}. "
            f"Deploys as {self.quantized.deployable_as}."
        )

    @property
    def random_weights(self) -> bool:
        """Whether the weights are drawn at random: speed and memory are true, text is not."""
        return self.ref.source == "shape"
