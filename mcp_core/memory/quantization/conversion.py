"""Conversion: what a scheme is given that packs a model after it was loaded dense.

Most schemes pack each weight as it arrives (``Scheme.apply``); this is for those that must see the model run, or
that transformers does not know (``Scheme.convert``). This file does not know any scheme.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mcp_core.models.text_codec import TextCodec
from mcp_core.recipe import Quantization, Recipe

__all__ = ["Conversion"]


@dataclass(frozen=True, slots=True, eq=False)
class Conversion:
    """The dense model's surroundings. ``recipe.model`` is resolved: its ``sha256`` is set where one is known.

    ``keep_dense`` are exact names of linear layers that must not be packed. ``codec`` turns text into token ids.
    ``report(fraction or None, message)`` tells progress of the stage "quantize".
    """

    recipe: Recipe
    dtype: torch.dtype
    device: torch.device
    keep_dense: tuple[str, ...]
    codec: TextCodec
    report: Callable[[float | None, str], None]

    @property
    def options(self) -> Quantization:
        """The Recipe's quantization."""
        return self.recipe.quantization
