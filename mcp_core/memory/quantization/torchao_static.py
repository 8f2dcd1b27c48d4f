"""torchao int8 with static activation scales: a scale a layer, found by calibration; plain, or with SmoothQuant.

This file does not know how ranges are found (``memory/calibration.py``) or alpha is searched
(``memory/smoothquant.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from torchao.quantization import Int8Tensor, PerRow, PerTensor
from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs
from torchao.utils import should_reduce_range
from transformers import PreTrainedModel

from mcp_core.memory.activation_ranges import InputRange, Ranges
from mcp_core.memory.calibration import FoundRanges, calibrate
from mcp_core.memory.quantization.conversion import Conversion
from mcp_core.memory.smoothquant import ALPHAS, AlphaJudge, best_alpha, search, smoothing_factors
from mcp_core.results import AlphaLoss, Calibrated

__all__ = ["choose_alpha", "int8_weight", "pack_smoothquant", "pack_static"]

# What the three steps take of the stage's progress.
_CALIBRATED, _SEARCHED = 0.5, 0.9
# A range of 0 would divide by 0; the layer's inputs were all 0.
_LEAST_SCALE = torch.finfo(torch.float32).eps


def pack_static(model: PreTrainedModel, conversion: Conversion) -> Calibrated:
    """Weights in int8 by row, inputs in int8 by their largest magnitude in calibration. Raises as ``calibrate``."""
    found = calibrate(model, conversion, _step(conversion, 0.0, _SEARCHED))
    _pack(model, conversion, found.ranges, None)
    return found.told(None, (), found.seconds)


def pack_smoothquant(model: PreTrainedModel, conversion: Conversion) -> Calibrated:
    """The same after SmoothQuant with the Recipe's alpha, or the best of a search. Raises as ``calibrate``."""
    found = calibrate(model, conversion, _step(conversion, 0.0, _CALIBRATED))
    started_s = time.monotonic()
    alpha, tried = choose_alpha(model, conversion, found, _step(conversion, _CALIBRATED, _SEARCHED))
    seconds = found.seconds + time.monotonic() - started_s
    _pack(model, conversion, found.ranges, alpha)
    return found.told(alpha, tried, seconds)


def choose_alpha(
    model: PreTrainedModel, conversion: Conversion, found: FoundRanges, tell: Callable[[float, str], None]
) -> tuple[float, tuple[AlphaLoss, ...]]:
    """The Recipe's alpha, else the best with every alpha tried: kept from an earlier search, or tried now.

    The search quantizes every layer that was watched, whatever the Recipe skips, so one search serves all. It
    judges on passages that its ranges were not taken from: on others a large alpha looks better than it is.
    """
    if conversion.options.alpha is not None:
        return conversion.options.alpha, ()
    tried = found.kept_alphas()
    if not tried:
        ranges = found.partial

        def quantize(layer: nn.Linear, name: str, alpha: float) -> torch.Tensor:
            return int8_weight(layer, ranges[name], alpha)

        judge = AlphaJudge(model, tuple(ranges), found.held_out(), quantize)
        tried = search(judge.loss, ALPHAS, tell)
        found.keep_alphas(tried)
    return best_alpha(tried), tried


def int8_weight(layer: nn.Linear, seen: InputRange, alpha: float | None) -> torch.Tensor:
    """The layer's weight as torchao computes with it: int8 rows, its inputs' scale and, with ``alpha``, 1/s.

    Smoothed in fp32: in bf16 the smoothed weight would be rounded before it is quantized. torchao's own
    SmoothQuantConfig does that, and asks for the inputs themselves or a second pass; the largest magnitude of x/s
    follows from the channels' own. Both scales are numbers of the layer's dtype: transformers reads a checkpoint's
    scales in that dtype, and would else compute with others than were written.
    """
    dtype = layer.weight.dtype
    weight, channels = layer.weight.float(), seen.channels.to(layer.weight.device)
    factors = None
    if alpha is not None:
        factors = smoothing_factors(channels, weight.abs().amax(dim=0), alpha)
        weight, channels = weight * factors, channels / factors
    reduced = should_reduce_range(layer.weight.device)  # CPUs without VNNI add up 8-bit products in 16 bits
    rows = Int8Tensor.from_hp(weight, PerRow(), reduce_range=reduced).scale.to(dtype).float()
    packed = Int8Tensor.from_hp(weight, PerRow(), scale=rows, reduce_range=reduced)
    scale = (channels.max() / (63 if reduced else 127)).clamp(min=_LEAST_SCALE).to(dtype).float()
    smoothed: torch.Tensor = Int8Tensor(
        packed.qdata,
        packed.scale,
        packed.block_size,
        dtype,
        zero_point=packed.zero_point,
        act_quant_scale=scale.reshape(
            (1,) * seen.dimensions
        ),  # torchao wants as many dimensions as the inputs have
        act_pre_scale=None if factors is None else 1 / factors,
        act_quant_kwargs=QuantizeTensorToInt8Kwargs(granularity=PerTensor(), reduce_range=reduced),
        reduce_range=reduced,
    )
    return smoothed


def _pack(model: PreTrainedModel, conversion: Conversion, ranges: Ranges, alpha: float | None) -> None:
    """Layer by layer; a layer that calibration never reached stays dense."""
    names = [name for name in ranges if name not in conversion.keep_dense]
    tell = _step(conversion, _SEARCHED, 1.0)
    for index, name in enumerate(names):
        tell(index / len(names), "Packing to int8.")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.weight = nn.Parameter(int8_weight(layer, ranges[name], alpha), requires_grad=False)


def _step(conversion: Conversion, begin: float, end: float) -> Callable[[float, str], None]:
    """Progress of one step as a part of the whole."""
    return lambda fraction, message: conversion.report(begin + (end - begin) * fraction, message)
