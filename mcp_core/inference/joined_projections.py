"""Projections of one input joined into one product: query, key and value; gate and up. Fewer, larger kernels.

Each row of a weight is kept as it is, packed ones too, so nothing is computed otherwise than before but for the
order of rounding in another kernel. The idea is gpt-fast's (github.com/meta-pytorch/gpt-fast); whether it pays, and
where, stands in docs/h100.md. This file does not know quantization schemes: what it has no rule for stays apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mcp_core.inference.int8_rows import Int8Rows, use_int8_rows

__all__ = ["join_projections"]

_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def join_projections(model: nn.Module) -> int:
    """Join what can be, in place; how many products that saves in a forward pass. Again is harmless."""
    saved = 0
    # Their parents only: what is held here would keep its memory until all are joined.
    parents = [each for each in model.modules() if any(hasattr(each, names[0]) for names in _GROUPS)]
    for module in parents:
        for names in _GROUPS:
            parts = [getattr(module, name, None) for name in names]
            if all(type(part) in (nn.Linear, Int8Rows) for part in parts):
                saved += _join(module, names, parts)  # type: ignore[arg-type]
                parts.clear()
                _give_back()
    use_int8_rows(model)
    return saved


def _give_back() -> None:
    """The parts' old places are of no use to the next, larger weights: a 7B model kept 9 GB of them on an H100."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _join(module: nn.Module, names: Sequence[str], parts: Sequence[nn.Linear]) -> int:
    joined = _joined(parts)
    if joined is None:
        return 0
    first = _First(joined, [part.out_features for part in parts])
    setattr(module, names[0], first)
    for index, name in enumerate(names[1:]):
        setattr(module, name, _Next(first, index))
    return len(names) - 1


def _joined(parts: Sequence[nn.Linear]) -> nn.Linear | None:
    """One layer with the rows of all; None where their weights cannot be put together."""
    kinds = {type(part.weight) for part in parts}
    biases = [part.bias for part in parts if part.bias is not None]
    if len(kinds) > 1 or len(biases) not in (0, len(parts)):
        return None
    rule = _RULES.get(kinds.pop().__name__)
    weight = rule([part.weight for part in parts]) if rule else None
    if weight is None:
        return None
    layer = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if biases:
        layer.bias = nn.Parameter(torch.cat([bias.detach() for bias in biases]), requires_grad=False)
    return layer.eval()


def _dense(weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    if len({weight.dtype for weight in weights}) > 1:
        return None
    return torch.cat([weight.detach() for weight in weights])


def _int8_rows(weights: Sequence[Any]) -> torch.Tensor | None:
    """torchao's Int8Tensor with one scale a row; not where activations have a scale that was calibrated."""
    first = weights[0]
    if any(each.act_quant_scale is not None or each.act_pre_scale is not None for each in weights):
        return None
    zeros = [each.zero_point for each in weights if each.zero_point is not None]
    if len(zeros) not in (0, len(weights)) or any(each.block_size != first.block_size for each in weights):
        return None
    kind: Any = type(first)
    joined: torch.Tensor = kind(
        torch.cat([each.qdata for each in weights]),
        torch.cat([each.scale for each in weights]),
        first.block_size,
        first.dtype,
        zero_point=torch.cat(zeros) if zeros else None,
        act_quant_kwargs=first.act_quant_kwargs,
        reduce_range=first.reduce_range,
    )
    return joined


def _int4_tiles(weights: Sequence[Any]) -> torch.Tensor | None:
    """torchao's Int4TilePackedTo4dTensor: tiles of 8 rows, scales by group then row."""
    first = weights[0]
    if any(each.act_pre_scale is not None or each.shape[0] % 8 for each in weights):
        return None
    if any(each.block_size != first.block_size for each in weights):
        return None
    rows, columns = sum(each.shape[0] for each in weights), first.shape[1]
    kind: Any = type(first)
    joined: torch.Tensor = kind(
        torch.cat([each.qdata for each in weights]).contiguous(),
        torch.cat([each.scale_and_zero for each in weights], dim=1).contiguous(),
        first.block_size,
        torch.Size((rows, columns)),
    )
    return joined


# By the class of a weight; torchao's are named, not imported, so that a model without them needs no torchao.
_RULES: dict[str, Callable[[Sequence[Any]], torch.Tensor | None]] = {
    "Parameter": _dense,
    "Int8Tensor": _int8_rows,
    "Int4TilePackedTo4dTensor": _int4_tiles,
}


class _First(nn.Module):
    """Computes the joined product and returns the first part; the others are fetched from it, each once."""

    def __init__(self, joined: nn.Linear, sizes: Sequence[int]) -> None:
        super().__init__()
        self.joined = joined
        self._sizes = list(sizes)
        self._hidden: torch.Tensor | None = None
        self._rest: dict[int, torch.Tensor] = {}

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` to ``[..., sizes[0]]``."""
        first, *rest = self.joined(hidden).split(self._sizes, -1)
        self._hidden, self._rest = hidden, dict(enumerate(rest))
        part: torch.Tensor = first
        return part

    def fetch(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """What further part ``index`` is for the same ``hidden``. Raises RuntimeError for another one."""
        if hidden is not self._hidden:
            raise RuntimeError("projections were joined that this model does not compute from one input in turn")
        part = self._rest.pop(index)
        if not self._rest:
            self._hidden = None
        return part


class _Next(nn.Module):
    """A further part of what ``first`` computed just before."""

    def __init__(self, first: _First, index: int) -> None:
        super().__init__()
        self._fetch = first.fetch  # no child of this one: its weights belong to one place
        self._index = index

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` to this part's ``[..., out]``."""
        return self._fetch(self._index, hidden)
