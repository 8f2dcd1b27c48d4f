"""torchao int8: one scale an output row; activations kept (weight-only), or made int8 token by token (dynamic).

This file does not know which devices have kernels for it (``schemes.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, MappingType
from torchao.utils import should_reduce_range
from transformers import TorchAoConfig

from mcp_core.recipe import Quantization

__all__ = ["quantize_dynamic", "quantize_weight_only"]

_MAPPINGS = {"symmetric": MappingType.SYMMETRIC, "asymmetric": MappingType.ASYMMETRIC}


def quantize_weight_only(
    options: Quantization, dtype: torch.dtype, device: torch.device, keep_dense: Sequence[str]
) -> TorchAoConfig:
    """Symmetric int8 rows; activations stay in ``dtype``."""
    # By default torchao's configs change inductor's settings for the whole process.
    config = Int8WeightOnlyConfig(set_inductor_config=False)
    return TorchAoConfig(config, modules_to_not_convert=list(keep_dense))


def quantize_dynamic(
    options: Quantization, dtype: torch.dtype, device: torch.device, keep_dense: Sequence[str]
) -> TorchAoConfig:
    """Symmetric int8 rows; each token's activations are scaled by their own largest value, or their range."""
    config = Int8DynamicActivationInt8WeightConfig(
        act_mapping_type=_MAPPINGS[options.activations],
        reduce_range=should_reduce_range(device),  # CPUs without VNNI add up 8-bit products in 16 bits
        set_inductor_config=False,
    )
    return TorchAoConfig(config, modules_to_not_convert=list(keep_dense))
