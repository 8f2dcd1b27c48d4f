"""torchao int8 weight-only: one scale an output row, weights expanded at each use.

This file does not know which devices have kernels for it (``schemes.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import TorchAoConfig

from mcp_core.recipe import Quantization

__all__ = ["quantize_weight_only"]


def quantize_weight_only(
    options: Quantization, dtype: torch.dtype, device: torch.device, keep_dense: Sequence[str]
) -> TorchAoConfig:
    """Symmetric int8 rows; activations stay in ``dtype``."""
    # By default torchao's configs change inductor's settings for the whole process.
    config = Int8WeightOnlyConfig(set_inductor_config=False)
    return TorchAoConfig(config, modules_to_not_convert=list(keep_dense))
