"""Tensors of a quantized checkpoint, put together: weights, scales and zero points become one parameter each.

Names and layouts are those that the libraries write. This file does not know files (``headers.py``), nor what is
packed in memory (``packing.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from mcp_core.models.architecture import TensorInfo

__all__ = ["join_parts", "without_storage"]

_BITS_OF_BYTE = 8
_PARTS_OF_WEIGHT = re.compile(
    r"(?P<module>.+)\.(?P<part>"
    r"qweight|qzeros|scales|g_idx|bias_quantized|"  # GPTQ, AWQ
    r"weight_packed|weight_scale|weight_zero_point|weight_shape|weight_g_idx|weight_global_scale|"
    r"(?:input|output)_(?:scale|zero_point|global_scale)|"  # compressed-tensors
    r"weight_scale_inv|activation_scale|"  # fp8 in blocks
    r"SCB|weight_format|weight\.(?:nested_)?(?:absmax|quant_map)|weight\.quant_state\..+|"  # bitsandbytes
    r"_weight_(?:qdata|scale|zero_point|scale_and_zero|per_tensor_scale|act_pre_scale))"  # torchao
)
_PARTS_OF_EXPERTS = re.compile(r"(?P<owner>.+)_(?P<part>blocks|scales)")  # MXFP4
_MAIN_PARTS = ("qweight", "weight_packed", "_weight_qdata", "blocks", "weight")


def join_parts(tensors: Iterable[TensorInfo], method: str, bits: int) -> tuple[TensorInfo, ...]:
    """One TensorInfo a parameter, in the order of the files.

    ``tensors`` are as they lie in the files, with ``stored_bytes``. Of a packed parameter the result has the dense
    shape, as far as the layout tells it (the number of weights always), and the bytes of all its parts.
    """
    groups: dict[str, dict[str, TensorInfo]] = {}
    for tensor in tensors:
        owner, part = _owner(tensor.name)
        groups.setdefault(owner, {})[part] = tensor
    return tuple(_join(owner, parts, method, bits) for owner, parts in groups.items())


def without_storage(tensors: Iterable[TensorInfo]) -> tuple[TensorInfo, ...]:
    """The same parameters, dense: what they occupy follows from the dtype they are loaded in."""
    return tuple(TensorInfo(tensor.name, tensor.shape) for tensor in tensors)


def _owner(name: str) -> tuple[str, str]:
    """The parameter that a stored tensor belongs to, and which part of it this is."""
    if match := _PARTS_OF_WEIGHT.fullmatch(name):
        return f"{match['module']}.weight", match["part"]
    if match := _PARTS_OF_EXPERTS.fullmatch(name):
        return match["owner"], match["part"]
    return name, "weight"


def _join(owner: str, parts: Mapping[str, TensorInfo], method: str, bits: int) -> TensorInfo:
    part = next((each for each in _MAIN_PARTS if each in parts), None)
    if part is None:  # scales of a weight that is missing: kept, so that sizes are right
        return next(iter(parts.values()))
    main = parts[part]
    stored = sum(each.stored_bytes or 0 for each in parts.values())
    if part == "weight" and (main.stored_bytes or 0) > main.parameters:  # two bytes a weight and more: dense
        return TensorInfo(owner, main.shape)
    if part == "weight" and "weight.absmax" not in parts:  # one byte a weight, in place
        return TensorInfo(owner, main.shape, stored)
    weights = (main.stored_bytes or 0) * _BITS_OF_BYTE // bits
    return TensorInfo(owner, _dense_shape(main.shape, weights, part, method), stored)


def _dense_shape(shape: tuple[int, ...], weights: int, part: str, method: str) -> tuple[int, ...]:
    if part == "blocks":  # [experts, outputs, blocks, bytes of a block]
        return shape[0], max(1, weights // (shape[0] * shape[1])), shape[1]
    if part == "qweight" and method == "gptq":  # [inputs packed, outputs]
        return shape[1], weights // shape[1]
    if part == "qweight":  # AWQ: [inputs, outputs packed]
        return weights // shape[0], shape[0]
    return shape[0], weights // shape[0]
