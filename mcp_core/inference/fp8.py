"""Keys and values as fp8 (e4m3), with a scale of their own for each token and head.

No scale depends on other tokens, so a page means the same to whoever shares it, in any chunking and any company.
This file does not know caches or pages.
"""

from __future__ import annotations

import torch

__all__ = ["BYTES", "dequantized", "quantized"]

# What the bits are kept as: torch copies and joins bytes on every device, which it does not all fp8.
BYTES = torch.uint8
_LARGEST = 448.0
_SMALLEST_SCALE = 2.0**-14  # the smallest normal number of a scale's type


def quantized(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``values [..., head_dim]`` as bytes and fp16 scales ``[...]``: the largest becomes e4m3's largest, 448."""
    wide = values.float()
    scales = (wide.abs().amax(-1) / _LARGEST).clamp(_SMALLEST_SCALE, torch.finfo(torch.float16).max).half()
    scaled = (wide / scales.float()[..., None]).clamp(-_LARGEST, _LARGEST)
    return scaled.to(torch.float8_e4m3fn).view(BYTES), scales


def dequantized(stored: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What ``quantized`` was given, as far as fp8 holds it."""
    return (stored.view(torch.float8_e4m3fn).float() * scales.float()[..., None]).to(dtype)
