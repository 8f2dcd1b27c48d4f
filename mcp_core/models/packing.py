"""Packing: bytes of a model's weights in memory under a dtype and a quantization scheme. Pure arithmetic.

This file does not know keys and values, activations, or what is free (``footprint.py``), nor how weights are
packed (``memory/quantization/``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from mcp_core.errors import RecipeError
from mcp_core.models.architecture import DTYPE_BYTES, LINEAR_EXPERTS, Architecture, TensorInfo
from mcp_core.recipe import DType, Quantization, SchemeName
from mcp_core.schemes import SCHEMES, DeviceKind, group_size_of, reason_to_keep_dense

__all__ = ["ModuleSize", "PackedWeights", "classic_bytes", "module_sizes", "pack"]

Part = Literal["linear", "experts", "embedding", "other"]

# Matrices that no scheme packs: token and position embeddings, the output layer, and a mixture's experts, which
# transformers keep in one three-dimensional parameter. The module's name decides, as it does when loading.
_DENSE_MATRIX = re.compile(r"(^|\.)(embed\w*|word_embeddings\w*|wte|wpe|lm_head|experts\..+|gate|router)\.weight$")
# The output layer is a module even where its weight is the embedding's and therefore in no list of tensors.
_TIED_OUTPUT = "lm_head"
_OF_MIXTURE = re.compile(r"\.(experts|gate|router)(\.|$)")
_EXPERT = re.compile(r"\.experts\.\d+\.(gate|up|down)_proj\.weight$")

# bitsandbytes: a code book of 16 fp32 levels a layer; with double quantization the scales become 8-bit numbers
# in blocks of 256 that share an fp32 scale, with a code book of 256 levels and one fp32 offset.
_BNB_BLOCK = 64
_CODE_BOOK_BYTES = 16 * 4
_NESTED_BLOCK = 256
_NESTED_EXTRA_BYTES = 256 * 4 + 4
# tinygemm on CUDA works on tiles; matrices are padded to whole ones.
_TILE_ROWS, _TILE_COLUMNS = 8, 1024
# FBGEMM (torch's x86 kernels) packs blocks of 512 inputs x 48 outputs where the CPU has VNNI, padded to whole
# ones, and keeps one int32 sum an output.
_CLASSIC_COLUMNS, _CLASSIC_ROWS = 512, 48


@dataclass(frozen=True, slots=True)
class ModuleSize:
    """The weights of one module, bias included. ``dense_because`` is empty for packed ones and where none is due.

    ``part`` is what it counts as: a linear layer (packed experts are some), a mixture's experts and router where no
    scheme packs them, an embedding or the output layer, or other (norms).
    """

    name: str
    part: Part
    parameters: int
    bytes: int
    packed: bool = False
    dense_because: str = ""


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """Bytes by part. The largest tensor is given in dense bytes, the largest packed matrix in weights (0: none).

    ``arriving_bytes`` is what the weights occupy before a scheme that needs the dense model has packed them;
    where weights are packed as they arrive it is the total.
    """

    linear_bytes: int
    expert_bytes: int
    embedding_bytes: int
    other_bytes: int
    arriving_bytes: int
    largest_tensor_bytes: int
    largest_packed_parameters: int

    @property
    def total_bytes(self) -> int:
        """All weights, tied ones once."""
        return self.linear_bytes + self.expert_bytes + self.embedding_bytes + self.other_bytes


def pack(
    architecture: Architecture, dtype: DType, quantization: Quantization, device_kind: DeviceKind = "cpu"
) -> PackedWeights:
    """What the weights occupy once loaded. ``architecture.tensors`` lists tied weights once.

    Raises RecipeError for a scheme that is not built in this version, for one that fits no layer's shape, and for
    a ``skip`` pattern that names no layer.
    """
    sizes = list(_tensor_sizes(architecture, dtype, quantization, device_kind))
    packed = [size.parameters for size in sizes if size.packed]
    _require_named([size for size in sizes if size.part != "other"], quantization)
    _require_packable(sizes, quantization)
    item, converted = DTYPE_BYTES[dtype], SCHEMES[quantization.scheme].convert is not None
    return PackedWeights(
        linear_bytes=sum(size.bytes for size in sizes if size.part == "linear"),
        expert_bytes=sum(size.bytes for size in sizes if size.part == "experts"),
        embedding_bytes=sum(size.bytes for size in sizes if size.part == "embedding"),
        other_bytes=sum(size.bytes for size in sizes if size.part == "other"),
        arriving_bytes=sum(size.parameters * item if converted else size.bytes for size in sizes),
        largest_tensor_bytes=max((size.parameters for size in sizes), default=0) * item,
        largest_packed_parameters=max(packed, default=0),
    )


def module_sizes(
    architecture: Architecture, dtype: DType, quantization: Quantization, device_kind: DeviceKind = "cpu"
) -> tuple[ModuleSize, ...]:
    """The same weights module by module, in the checkpoint's order; their bytes add up to ``pack``'s total.

    Raises RecipeError for a scheme that is not built in this version.
    """
    modules: dict[str, ModuleSize] = {}
    for size in _tensor_sizes(architecture, dtype, quantization, device_kind):
        known = modules.get(size.name)
        modules[size.name] = size if known is None else _joined(known, size)
    return tuple(modules.values())


def classic_bytes(rows: int, columns: int) -> int:
    """What torch's x86 kernels make of an int8 matrix of ``rows`` outputs and ``columns`` inputs."""
    return _multiple(rows, _CLASSIC_ROWS) * _multiple(columns, _CLASSIC_COLUMNS) + rows * 4


def _tensor_sizes(
    architecture: Architecture, dtype: DType, quantization: Quantization, device_kind: DeviceKind
) -> Iterator[ModuleSize]:
    """One for each tensor, under its module's name."""
    packed_bytes = _packed_bytes_of(quantization.scheme)
    linear_experts = architecture.model_type in LINEAR_EXPERTS
    for tensor in architecture.tensors:
        part = _part(tensor, linear_experts)
        name = tensor.name.rpartition(".")[0]
        dense = ModuleSize(name, part, tensor.parameters, tensor.parameters * DTYPE_BYTES[dtype])
        if tensor.stored_bytes is not None:  # the checkpoint came quantized, or is a GGUF
            yield replace(dense, bytes=tensor.stored_bytes, packed=part != "other")
        elif packed_bytes is None or part == "other":
            yield dense
        elif reason := _dense_because(tensor, part, quantization, device_kind):
            yield replace(dense, dense_because=reason)
        else:
            rows, columns = tensor.shape
            size = packed_bytes(_Matrix(rows, columns, DTYPE_BYTES[dtype], quantization, device_kind))
            yield replace(dense, bytes=size, packed=True)


def _dense_because(tensor: TensorInfo, part: Part, quantization: Quantization, device_kind: DeviceKind) -> str:
    if part == "experts":
        return "a mixture's experts in one parameter, or its router"
    if part == "embedding":
        return "no linear layer, or the output layer"
    module = tensor.name.removesuffix(".weight")
    if any(fnmatchcase(module, pattern) for pattern in quantization.skip):
        return "quantization.skip"
    rows, columns = tensor.shape
    return reason_to_keep_dense(quantization, rows, columns, device_kind)


def _require_named(matrices: list[ModuleSize], quantization: Quantization) -> None:
    """Raise RecipeError for a pattern that would be refused at load (``layers_to_keep_dense``)."""
    names = {_TIED_OUTPUT, *(size.name for size in matrices)}
    for pattern in quantization.skip:
        inner = pattern.partition(".")[2]  # some checkpoints leave out the name of the model around its layers
        if not any(fnmatchcase(name, pattern) or fnmatchcase(name, inner) for name in names):
            example = next((size.name for size in matrices if size.part == "linear"), "model.layers.0.mlp.up_proj")
            raise RecipeError(
                f'quantization.skip: "{pattern}" names no linear layer of this model.',
                f"Its layers are named like {example}.",
            )


def _require_packable(sizes: list[ModuleSize], quantization: Quantization) -> None:
    """Raise RecipeError when shapes leave nothing to pack; patterns that skip everything are the user's will."""
    if any(size.packed for size in sizes):
        return
    reasons = {size.dense_because for size in sizes if size.part == "linear"} - {"", "quantization.skip"}
    if reasons:
        raise RecipeError(
            f"quantization.scheme: {quantization.scheme} can pack no layer: {'; '.join(sorted(reasons))}.",
            "Choose another group size or scheme.",
        )


def _joined(known: ModuleSize, more: ModuleSize) -> ModuleSize:
    """A module's weight and its bias as one."""
    weight = known if known.part != "other" else more
    return replace(weight, parameters=known.parameters + more.parameters, bytes=known.bytes + more.bytes)


def _part(tensor: TensorInfo, linear_experts: bool) -> Part:
    if len(tensor.shape) < 2:
        return "other"
    if _is_linear(tensor, linear_experts):
        return "linear"
    return "experts" if _OF_MIXTURE.search(tensor.name) else "embedding"


def _is_linear(tensor: TensorInfo, linear_experts: bool) -> bool:
    if len(tensor.shape) != 2 or not tensor.name.endswith(".weight"):
        return False
    return (linear_experts and _EXPERT.search(tensor.name) is not None) or not _DENSE_MATRIX.search(tensor.name)


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One matrix to be packed; ``item`` is bytes of an element of its dense dtype."""

    rows: int
    columns: int
    item: int
    options: Quantization
    device_kind: DeviceKind

    @property
    def weights(self) -> int:
        return self.rows * self.columns


def _packed_bytes_of(name: SchemeName) -> Callable[[_Matrix], int] | None:
    """How many bytes a matrix takes in this scheme; None for the scheme that packs nothing."""
    if name not in SCHEMES:
        raise RecipeError(
            f"quantization.scheme: {name} is not built in this version.", f"There are: {', '.join(SCHEMES)}."
        )
    return _PACKED_BYTES.get(name)


def _bnb_int8(matrix: _Matrix) -> int:
    return matrix.weights + matrix.rows * 4  # an fp32 scale a row


def _bnb_four_bit(matrix: _Matrix) -> int:
    """As loaded. At first use on a CPU with AVX512-BF16 the scales become bf16, double quantization or not."""
    blocks = math.ceil(matrix.weights / _BNB_BLOCK)
    if matrix.options.double_quant:
        scales = blocks + math.ceil(blocks / _NESTED_BLOCK) * 4 + _NESTED_EXTRA_BYTES
    else:
        scales = blocks * 4
    return math.ceil(matrix.weights / 2) + scales + _CODE_BOOK_BYTES


def _torchao_int8(matrix: _Matrix) -> int:
    return matrix.weights + matrix.rows * (4 + 1)  # an fp32 scale and an int8 zero point a row


def _torchao_int8_static(matrix: _Matrix) -> int:
    return _torchao_int8(matrix) + 4  # and the inputs' fp32 scale


def _torchao_smoothquant(matrix: _Matrix) -> int:
    return _torchao_int8_static(matrix) + matrix.columns * 4  # and 1/s by input channel, fp32


def _torchao_fp8(matrix: _Matrix) -> int:
    return matrix.weights + matrix.rows * 4


def _torchao_int4(matrix: _Matrix) -> int:
    """A scale and a zero point a group, both in the dense dtype."""
    rows, columns = matrix.rows, matrix.columns
    if matrix.device_kind == "cuda":
        rows, columns = _multiple(rows, _TILE_ROWS), _multiple(columns, _TILE_COLUMNS)
    groups = columns // group_size_of(matrix.options)
    return rows * columns // 2 + rows * groups * 2 * matrix.item


def _classic(matrix: _Matrix) -> int:
    return classic_bytes(matrix.rows, matrix.columns)


def _multiple(number: int, of: int) -> int:
    return math.ceil(number / of) * of


_PACKED_BYTES: dict[SchemeName, Callable[[_Matrix], int]] = {
    "bnb-int8": _bnb_int8,
    "bnb-nf4": _bnb_four_bit,
    "bnb-fp4": _bnb_four_bit,
    "torchao-int8-weight-only": _torchao_int8,
    "torchao-int8-dynamic": _torchao_int8,
    "torchao-int8-static": _torchao_int8_static,
    "torchao-int8-static-smoothquant": _torchao_smoothquant,
    "torchao-int4-weight-only": _torchao_int4,
    "torchao-fp8-weight-only": _torchao_fp8,
    "torchao-fp8-dynamic": _torchao_fp8,
    "classic-dynamic": _classic,
}
