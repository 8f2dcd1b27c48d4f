"""torchao int4 weight-only: groups of weights with a scale and a zero point, in the layout of tinygemm's kernels.

This file does not know which shapes and devices have kernels for it (``schemes.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchao.core.config import AOBaseConfig
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.quantization import Int4WeightOnlyConfig
from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm, Int4PackingFormat
from transformers import TorchAoConfig

from mcp_core.recipe import Quantization
from mcp_core.schemes import group_size_of

__all__ = ["quantize_weight_only"]

_ALGORITHMS = {"minmax": Int4ChooseQParamsAlgorithm.TINYGEMM, "hqq": Int4ChooseQParamsAlgorithm.HQQ}


def quantize_weight_only(
    options: Quantization, dtype: torch.dtype, device: torch.device, keep_dense: Sequence[str]
) -> TorchAoConfig:
    """Asymmetric int4; scales from each group's range, or fitted by half-quadratic optimization (hqq)."""
    algorithm, group_size = _ALGORITHMS[options.parameters], group_size_of(options)
    config: AOBaseConfig
    if device.type == "cpu":
        config = PrototypeInt4WeightOnlyConfig(
            group_size=group_size, int4_choose_qparams_algorithm=algorithm, set_inductor_config=False
        )
    else:
        config = Int4WeightOnlyConfig(
            group_size=group_size,
            int4_choose_qparams_algorithm=algorithm,
            int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D,
            set_inductor_config=False,
        )
    return TorchAoConfig(config, modules_to_not_convert=list(keep_dense))
