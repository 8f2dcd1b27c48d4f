"""Packing: bytes of a model's weights in memory under a dtype and a quantization scheme. Pure arithmetic.

This file does not know keys and values, activations, or what is free (``footprint.py``), nor how weights are
packed (``memory/quantization/``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mcp_core.errors import RecipeError
from mcp_core.models.architecture import DTYPE_BYTES, Architecture, TensorInfo
from mcp_core.recipe import DType, Quantization
from mcp_core.schemes import SCHEMES, Scheme

__all__ = ["PackedWeights", "pack"]

# Matrices that no scheme packs: token and position embeddings, the output layer, and a mixture's experts, which
# transformers keep in one three-dimensional parameter. The module's name decides, as it does when loading.
_DENSE_MATRIX = re.compile(r"(^|\.)(embed\w*|word_embeddings\w*|wte|wpe|lm_head|experts\..+|gate)\.weight$")

# bitsandbytes: a code book of 16 fp32 levels a layer; with double quantization the scales become 8-bit numbers
# in blocks of 256 that share an fp32 scale, with a code book of 256 levels and one fp32 offset.
_CODE_BOOK_BYTES = 16 * 4
_NESTED_BLOCK = 256
_NESTED_EXTRA_BYTES = 256 * 4 + 4


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """Bytes by part. The largest tensor is given in dense bytes, the largest packed matrix in weights (0: none)."""

    linear_bytes: int
    embedding_bytes: int
    other_bytes: int
    largest_tensor_bytes: int
    largest_packed_parameters: int

    @property
    def total_bytes(self) -> int:
        """All weights, tied ones once."""
        return self.linear_bytes + self.embedding_bytes + self.other_bytes


def pack(architecture: Architecture, dtype: DType, quantization: Quantization) -> PackedWeights:
    """What the weights occupy once loaded. ``architecture.tensors`` lists tied weights once.

    Raises RecipeError for a scheme that is not built in this version.
    """
    scheme, item = _scheme(quantization), DTYPE_BYTES[dtype]
    linears = [tensor for tensor in architecture.tensors if _is_linear(tensor)]
    matrices = [each for each in architecture.tensors if len(each.shape) > 1 and not _is_linear(each)]
    vectors = [each for each in architecture.tensors if len(each.shape) < 2]
    packed = list(_packed(linears, scheme, quantization))
    dense = sum(tensor.parameters for tensor in linears) - sum(tensor.parameters for tensor in packed)
    return PackedWeights(
        linear_bytes=dense * item + sum(_packed_bytes(each, scheme, quantization) for each in packed),
        embedding_bytes=sum(tensor.parameters for tensor in matrices) * item,
        other_bytes=sum(tensor.parameters for tensor in vectors) * item,
        largest_tensor_bytes=max((each.parameters for each in architecture.tensors), default=0) * item,
        largest_packed_parameters=max((each.parameters for each in packed), default=0),
    )


def _scheme(quantization: Quantization) -> Scheme:
    name = quantization.scheme
    if name not in SCHEMES:
        raise RecipeError(
            f"quantization.scheme: {name} is not built in this version.", f"There are: {', '.join(SCHEMES)}."
        )
    return SCHEMES[name]


def _is_linear(tensor: TensorInfo) -> bool:
    return len(tensor.shape) == 2 and not _DENSE_MATRIX.search(tensor.name)


def _packed(linears: list[TensorInfo], scheme: Scheme, quantization: Quantization) -> Iterator[TensorInfo]:
    if scheme.bits == 0:
        return
    for tensor in linears:
        module = tensor.name.removesuffix(".weight")
        if not any(fnmatchcase(module, pattern) for pattern in quantization.skip):
            yield tensor


def _packed_bytes(tensor: TensorInfo, scheme: Scheme, quantization: Quantization) -> int:
    """One packed matrix ``[rows, columns]`` with its scales."""
    weights = math.ceil(tensor.parameters * scheme.bits / 8)
    if not scheme.block:
        return weights + tensor.shape[0] * scheme.scale_bits // 8
    blocks = math.ceil(tensor.parameters / scheme.block)
    if quantization.double_quant:
        scales = blocks + math.ceil(blocks / _NESTED_BLOCK) * 4 + _NESTED_EXTRA_BYTES
    else:
        scales = blocks * scheme.scale_bits // 8
    return weights + scales + _CODE_BOOK_BYTES
