"""What goes into a model's linear layers: the largest magnitude by channel, watched while the model runs.

Only maxima are kept, never inputs, so that memory does not grow with the text. This file does not know what runs
(``calibration.py``) or what the ranges are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = ["InputRange", "Ranges", "merged", "watched"]


@dataclass(frozen=True, slots=True, eq=False)
class InputRange:
    """Of one layer: ``channels [in_features]``, the largest magnitude of each, fp32 on the CPU.

    ``dimensions`` is how many its input has (3: batch, position, channel), ``tokens`` how many it saw.
    """

    channels: torch.Tensor
    dimensions: int
    tokens: int

    @property
    def largest(self) -> float:
        """The largest magnitude of all channels."""
        return float(self.channels.max())

    @property
    def outlier_ratio(self) -> float | None:
        """The largest channel's magnitude over the median channel's; None where half of them are silent."""
        median = float(self.channels.median())
        return self.largest / median if median > 0 else None


# Layer name -> its range. A layer that saw no token is not in it.
Ranges = Mapping[str, InputRange]


def merged(one: Ranges, other: Ranges) -> Ranges:
    """The ranges over both."""
    return {name: _over_both(one.get(name), other.get(name)) for name in {**one, **other}}


class _Observer:
    """A forward pre-hook that keeps running maxima on the layer's own device."""

    def __init__(self) -> None:
        self._channels: torch.Tensor | None = None
        self._dimensions = 0
        self._tokens = 0

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs: torch.Tensor = arguments[0].detach()
        rows = inputs.reshape(-1, inputs.shape[-1])
        if rows.shape[0] == 0:  # an expert that no token was routed to
            return
        largest = rows.abs().amax(dim=0).float()
        self._channels = largest if self._channels is None else torch.maximum(self._channels, largest)
        self._dimensions = inputs.dim()
        self._tokens += rows.shape[0]

    def range(self) -> InputRange | None:
        """What it saw; None for nothing."""
        if self._channels is None:
            return None
        return InputRange(self._channels.cpu(), self._dimensions, self._tokens)


@contextmanager
def watched(model: PreTrainedModel) -> Iterator[dict[str, InputRange]]:
    """Watch the inputs of every linear layer but the output layer; the dictionary is filled at the end."""
    output = model.get_output_embeddings()
    observers = {
        name: (module, _Observer())
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output
    }
    hooks = [module.register_forward_pre_hook(observer) for module, observer in observers.values()]
    ranges: dict[str, InputRange] = {}
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()
    seen = {name: observer.range() for name, (_, observer) in observers.items()}
    ranges |= {name: each for name, each in seen.items() if each is not None}


def _over_both(one: InputRange | None, other: InputRange | None) -> InputRange:
    if one is None or other is None:
        found = one or other
        assert found is not None, "a name comes from one of them"
        return found
    return InputRange(torch.maximum(one.channels, other.channels), one.dimensions, one.tokens + other.tokens)
