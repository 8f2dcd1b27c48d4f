"""PagedBatch: the tensors of one step that attention needs: which tokens belong together and where their pages are.

This file does not know how attention is computed (``attention.py``) or who takes part (``scheduler.py``).
"""

from __future__ import annotations

from collections.abc import Sequence as Sequenced
from typing import NamedTuple

import torch

from mcp_core.inference.paged.scheduler import Part

__all__ = ["PagedBatch", "Step", "make_step"]


class PagedBatch(NamedTuple):
    """Sizes: n sequences, t tokens of all of them one after the other, p pages of the longest.

    ``slots [t]`` is where each token is kept in the pool; ``pages [n, p]`` each sequence's pages, padded with 0;
    ``lengths [n]`` its tokens in the pool after this step; ``starts [n + 1]`` where its tokens begin among the t.
    ``longest_query`` and ``longest_key`` bound the two lengths of any sequence.
    """

    slots: torch.Tensor
    pages: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor
    longest_query: int
    longest_key: int


class Step(NamedTuple):
    """One forward pass: ``tokens`` and ``positions`` ``[1, t]``, ``last [n]`` the rows whose logits are wanted."""

    tokens: torch.Tensor
    positions: torch.Tensor
    last: torch.Tensor
    batch: PagedBatch


def make_step(parts: Sequenced[Part], page_size: int, device: torch.device) -> Step:
    """The tensors of these parts, in their order."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    for part in parts:
        sequence, first = part.sequence, part.sequence.computed
        tokens += sequence.tokens[first : first + part.count]
        positions += range(first, first + part.count)
        slots += [sequence.slot(position, page_size) for position in range(first, first + part.count)]
        starts.append(len(tokens))
    lengths = [part.sequence.computed + part.count for part in parts]
    width = max(-(-length // page_size) for length in lengths)
    pages = [(part.sequence.pages + [0] * width)[:width] for part in parts]
    batch = PagedBatch(
        slots=_long(slots, device),
        pages=torch.tensor(pages, dtype=torch.int32, device=device),
        lengths=torch.tensor(lengths, dtype=torch.int32, device=device),
        starts=torch.tensor(starts, dtype=torch.int32, device=device),
        longest_query=max(part.count for part in parts),
        longest_key=max(lengths),
    )
    last = _long([end - 1 for end in starts[1:]], device)
    return Step(_long(tokens, device)[None], _long(positions, device)[None], last, batch)


def _long(values: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long, device=device)
