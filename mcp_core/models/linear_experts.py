"""Experts as linear layers: what a quantization scheme packs, which transformers' fused stacks of experts are not.

The model computes what its own eager experts compute. This file does not know any scheme, nor where weights come
from; which models it is for is ``architecture.LINEAR_EXPERTS``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = ["LinearExperts", "with_linear_experts"]


class _Expert(nn.Module):
    """One gated MLP, with the names that checkpoints give its weights."""

    def __init__(self, hidden: int, intermediate: int, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)
        self.act_fn = activation

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of ``[tokens, hidden]``."""
        down: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))
        return down


class LinearExperts(nn.ModuleList):
    """The experts of one layer. Those that no token chose are not run."""

    @classmethod
    def like(cls, fused: Any) -> LinearExperts:
        """Empty experts of the sizes of transformers' ``fused`` ones."""
        sizes = (fused.hidden_dim, fused.intermediate_dim, fused.act_fn)
        return cls(_Expert(*sizes) for _ in range(fused.num_experts))

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Sum of the chosen experts' outputs: ``[tokens, hidden]``; ``chosen`` and ``weights`` are [tokens, k]."""
        total = torch.zeros_like(hidden)
        for index in sorted(set(chosen.flatten().tolist())):
            tokens, places = torch.where(chosen == index)
            output = self[index](hidden[tokens]) * weights[tokens, places, None]
            total.index_add_(0, tokens, output.to(total.dtype))
        return total


def with_linear_experts(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The same class, whose models have linear layers where transformers fuses experts."""

    class _WithLinearExperts(model_class):  # type: ignore[misc]
        def __init__(self, config: Any, *rest: Any, **named: Any) -> None:
            super().__init__(config, *rest, **named)
            for name, module in list(self.named_modules()):
                if name.endswith(".experts") and hasattr(module, "gate_up_proj"):
                    self.set_submodule(name, LinearExperts.like(module))

    _WithLinearExperts.__name__ = model_class.__name__
    return _WithLinearExperts
