"""SmoothQuant: outliers move from a layer's inputs into its weights, and how far is searched for.

A layer's product x·Wᵀ is also (x/s)·(W·s)ᵀ for any s > 0 by channel; the paper (Xiao et al. 2022) takes
s = max|x|^alpha / max|W|^(1-alpha). This file does not know how the two are then quantized.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from mcp_core.memory.passages import Passages
from mcp_core.models.calibration_memory import JUDGED_POSITIONS
from mcp_core.results import AlphaLoss

__all__ = ["ALPHAS", "AlphaJudge", "best_alpha", "search", "smoothing_factors"]

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

# (layer, its name, alpha) -> the weight to compute with.
Quantize = Callable[[nn.Linear, str, float], torch.Tensor]


def smoothing_factors(inputs: torch.Tensor, weights: torch.Tensor, alpha: float) -> torch.Tensor:
    """s by channel, from the largest magnitudes by channel, both ``[in_features]``, fp32.

    A channel that was silent, or whose weights are all 0, is left as it is: s = 1.
    """
    factors = inputs.pow(alpha) / weights.pow(1 - alpha)
    return torch.where((inputs > 0) & (weights > 0), factors, torch.ones_like(factors))


def search(
    loss: Callable[[float], float], alphas: Sequence[float], tell: Callable[[float, str], None]
) -> tuple[AlphaLoss, ...]:
    """Every alpha with its loss, in order; ``tell(fraction, message)`` hears of each."""
    tried: list[AlphaLoss] = []
    for alpha in alphas:
        tried.append(AlphaLoss(alpha=alpha, kl=loss(alpha)))
        tell(len(tried) / len(alphas), f"alpha {alpha:g}: KL {tried[-1].kl:.3g} nats.")
    return tuple(tried)


def best_alpha(tried: Iterable[AlphaLoss]) -> float:
    """The alpha of the least loss."""
    return min(tried, key=lambda each: each.kl).alpha


class AlphaJudge:
    """How far quantized layers move a dense model's predictions at the last positions of a few equal passages.

    A layer is quantized when it computes and dropped after, so that one at a time exists twice.
    """

    def __init__(
        self, model: PreTrainedModel, names: Sequence[str], token_ids: Passages, quantize: Quantize
    ) -> None:
        self._model, self._names, self._quantize = model, names, quantize
        self._batch = torch.tensor(token_ids, device=model.device)
        self._dense = self._logits()

    def loss(self, alpha: float) -> float:
        """Mean KL(dense || quantized) in nats."""
        with _computing(self._model, self._names, self._quantize, alpha):
            now = self._logits()
        # One passage at a time in fp32: a vocabulary is wide.
        return statistics.fmean(_divergence(p, q) for p, q in zip(self._dense, now, strict=True))

    @torch.inference_mode()
    def _logits(self) -> torch.Tensor:
        logits: torch.Tensor = self._model(
            input_ids=self._batch, use_cache=False, logits_to_keep=JUDGED_POSITIONS
        ).logits
        return logits


def _divergence(dense: torch.Tensor, quantized: torch.Tensor) -> float:
    """Mean KL in nats over the positions ``[position, vocabulary]`` of one passage."""
    p, q = dense.float().log_softmax(-1), quantized.float().log_softmax(-1)
    return functional.kl_div(q, p, reduction="batchmean", log_target=True).item()


class _Computing(nn.Module):
    """Stands in for a linear layer: its weight is quantized for each product."""

    def __init__(self, layer: nn.Linear, weight: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self._weight = weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.linear(inputs, self._weight(), self.layer.bias)


@contextmanager
def _computing(model: PreTrainedModel, names: Iterable[str], quantize: Quantize, alpha: float) -> Iterator[None]:
    layers = {name: model.get_submodule(name) for name in names}
    try:
        for name, layer in layers.items():
            assert isinstance(layer, nn.Linear)
            model.set_submodule(name, _stand_in(layer, name, quantize, alpha))
        yield
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)


def _stand_in(layer: nn.Linear, name: str, quantize: Quantize, alpha: float) -> _Computing:
    return _Computing(layer, lambda: quantize(layer, name, alpha))
