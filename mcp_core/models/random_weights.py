"""Random weights for a model's shape, drawn one tensor at a time when it is asked for.

They stand in for a checkpoint's tensors, so a random model is loaded and quantized by the same code as a real
one and is never whole anywhere before it is quantized. This file does not know who asks, or how it is packed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import nn

__all__ = ["RandomTensor", "random_tensors"]

_STORED_AS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True, slots=True)
class RandomTensor:
    """A tensor that does not exist yet; ``tensor[...]`` draws it, the same one each time.

    Matrices are normal with a variance of 1 / input width, so that activations and logits stay near 1;
    vectors are ones (norms) or zeros (biases).
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    seed: int

    @property
    def nbytes(self) -> int:
        """Its size once drawn."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def get_dtype(self) -> str:
        """Safetensors' name of its type."""
        return _STORED_AS[self.dtype]

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        tensor = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        if len(self.shape) < 2:
            return tensor.fill_(0.0 if self.name.endswith("bias") else 1.0)
        generator = torch.Generator(self.device).manual_seed(self.seed ^ zlib.crc32(self.name.encode()))
        return tensor.normal_(std=float(self.shape[-1]) ** -0.5, generator=generator)


def random_tensors(
    model: nn.Module, dtype: torch.dtype, device: torch.device, *, seed: int = 0
) -> Mapping[str, RandomTensor]:
    """One RandomTensor for each parameter of ``model`` (on the meta device); tied parameters once."""
    return {
        name: RandomTensor(name, tuple(parameter.shape), dtype, device, seed)
        for name, parameter in model.named_parameters()
    }
