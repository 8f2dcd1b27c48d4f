"""torchao fp8 (e4m3): one scale an output row; activations kept (weight-only), or made fp8 row by row (dynamic).

This file does not know which devices have kernels for it (``schemes.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Float8WeightOnlyConfig, PerRow
from transformers import TorchAoConfig

from mcp_core.recipe import Quantization

__all__ = ["quantize_dynamic", "quantize_weight_only"]


def quantize_weight_only(
    options: Quantization, dtype: torch.dtype, device: torch.device, keep_dense: Sequence[str]
) -> TorchAoConfig:
    """Rows scaled to fp8's range; activations stay in ``dtype``."""
    config = Float8WeightOnlyConfig(set_inductor_config=False)
    return TorchAoConfig(config, modules_to_not_convert=list(keep_dense))


def quantize_dynamic(
    options: Quantization, dtype: torch.dtype, device: torch.device, keep_dense: Sequence[str]
) -> TorchAoConfig:
    """Rows of weights and rows of activations scaled to fp8's range, multiplied by the tensor cores."""
    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    return TorchAoConfig(config, modules_to_not_convert=list(keep_dense))
