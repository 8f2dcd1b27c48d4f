"""Layers whose weights are int8 rows (torchao, weight-only) computed by kernels of our own, in 16 bits on CUDA.

A layer keeps its weight, so it is saved, weighed and joined as before. This file does not know when that pays but
for the number of tokens (``int8_kernels.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Int8Rows", "use_int8_rows"]


# For more, a weight made dense once is used often. Where that crosses was not measured: at 64 tokens a step of int8
# is 9 % behind one of bf16, at 16 ahead of it (docs/h100.md).
_MOST_TOKENS = 256
_DEVICE = "cuda"
# In fp32 Triton's products of matrices would round to TF32, which nobody asked for.
_DTYPES = (torch.bfloat16, torch.float16)


class Int8Rows(nn.Linear):
    """A linear layer of int8 rows with a scale each; ``codes [out, in]`` and ``scales [out]`` are its weight's."""

    codes: torch.Tensor
    scales: torch.Tensor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` to ``[..., out]``."""
        tokens = hidden.reshape(-1, hidden.shape[-1])
        product: torch.Tensor = int8_rows(tokens, self.codes, self.scales)
        result = product if self.bias is None else product + self.bias
        return result.view(*hidden.shape[:-1], -1)


def use_int8_rows(model: nn.Module) -> int:
    """Let such layers of a model on a CUDA device compute so from now on, in place; how many there are."""
    layers = [module for module in model.modules() if type(module) is nn.Linear and _is_int8_rows(module.weight)]
    for layer in layers:
        weight: Any = layer.weight
        layer.__class__ = Int8Rows
        layer.register_buffer("codes", weight.qdata, persistent=False)
        layer.register_buffer("scales", weight.scale.flatten(), persistent=False)
    return len(layers)


def _is_int8_rows(weight: Any) -> bool:
    """Symmetric, one scale a row, activations as they are, on a device that has kernels.

    torchao computes such a weight without its zero points, which are all 0.
    """
    return (
        type(weight).__name__ == "Int8Tensor"
        and weight.device.type == _DEVICE
        and weight.dtype in _DTYPES
        and weight.qdata.is_contiguous()
        and weight.scale.numel() == weight.shape[0]
        and weight.act_quant_kwargs is None
        and weight.act_quant_scale is None
        and weight.act_pre_scale is None
    )


@torch.library.custom_op("mcp::unpacked_product", mutates_args=())
def int8_rows(tokens: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``tokens [t, in]`` times ``codes [out, in]`` times ``scales [out]``; torch.compile leaves it as it is."""
    if tokens.is_cuda and 0 < tokens.shape[0] <= _MOST_TOKENS:
        from mcp_core.inference.int8_kernels import product

        return product(tokens.contiguous(), codes, scales)
    return torch.mm(tokens, codes.to(tokens.dtype).T) * scales.to(tokens.dtype)


@int8_rows.register_fake
def _(tokens: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return tokens.new_empty((tokens.shape[0], codes.shape[0]))
