"""PagedBatch: the tensors of one step that attention needs: which tokens belong together and where their pages are.

This file does not know how attention is computed (``attention.py``) or who takes part (``scheduler.py``).
"""

from __future__ import annotations

from collections.abc import Sequence as Sequenced
from typing import NamedTuple

import numpy as np
import torch

from mcp_core.inference.paged.scheduler import Part
from mcp_core.inference.transfer import to_device

__all__ = [
    "ROW_FIELDS",
    "Columns",
    "PagedBatch",
    "Step",
    "columns",
    "decode_rows",
    "make_step",
    "padding_step",
    "with_unread",
]


class PagedBatch(NamedTuple):
    """Sizes: n sequences, t tokens of all of them one after the other, p pages of the longest.

    ``slots [t]`` is where each token is kept in the pool; ``pages [n, p]`` each sequence's pages, padded with 0;
    ``lengths [n]`` its tokens in the pool after this step; ``starts [n + 1]`` where its tokens begin among the t.
    ``longest_query`` and ``longest_key`` bound the two lengths of any sequence. Behind the others there may be
    some that have no tokens here.
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


class Columns(NamedTuple):
    """A step on the host: ``tokens``, ``sources`` (the row of those still unread, else -1), ``positions`` and
    ``slots`` ``[t]``; ``starts``, ``lengths`` and ``pages`` as in PagedBatch."""

    tokens: np.ndarray
    sources: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    pages: np.ndarray


def columns(parts: Sequenced[Part], page_size: int) -> Columns:
    """The tokens of these parts, in their order."""
    starts = np.cumsum([0, *(part.count for part in parts)], dtype=np.int32)
    tokens, sources, positions, slots = (np.empty(int(starts[-1]), np.int64) for _ in range(4))
    for part, start, stop in zip(parts, starts, starts[1:], strict=False):
        sequence, first = part.sequence, part.sequence.computed
        at = np.arange(first, first + part.count)
        tokens[start:stop], sources[start:stop] = _tokens_of(part)
        positions[start:stop] = at
        slots[start:stop] = np.asarray(sequence.pages)[at // page_size] * page_size + at % page_size
    lengths = np.array([part.sequence.computed + part.count for part in parts], np.int32)
    pages = np.zeros((len(parts), -(-int(lengths.max(initial=0)) // page_size)), np.int32)
    for row, part in zip(pages, parts, strict=True):
        held = part.sequence.pages[: pages.shape[1]]
        row[: len(held)] = held
    return Columns(tokens, sources, positions, slots, starts, lengths, pages)


def make_step(parts: Sequenced[Part], page_size: int, chosen: torch.Tensor) -> Step:
    """The tensors of these parts, in their order, on the device of ``chosen``, which holds tokens still unread."""
    device, table = chosen.device, columns(parts, page_size)
    ids, where, places = to_device(torch.from_numpy(np.stack([table.tokens, table.positions, table.slots])), device)
    batch = PagedBatch(
        slots=places,
        pages=to_device(torch.from_numpy(table.pages), device),
        lengths=to_device(torch.from_numpy(table.lengths), device),
        starts=to_device(torch.from_numpy(table.starts), device),
        longest_query=max(part.count for part in parts),
        longest_key=int(table.lengths.max()),
    )
    if (table.sources >= 0).any():
        ids = with_unread(ids, to_device(torch.from_numpy(table.sources), device), chosen)
    last = to_device(torch.from_numpy(table.starts[1:].astype(np.int64) - 1), device)
    return Step(ids[None], where[None], last, batch)


def padding_step(count: int, page_size: int, device: torch.device) -> Step:
    """``count`` tokens of a sequence that there is not: all are kept in page 0, which nobody reads."""
    zeros = torch.zeros(count, dtype=torch.long, device=device)
    batch = PagedBatch(
        slots=zeros,
        pages=torch.zeros((1, -(-count // page_size)), dtype=torch.int32, device=device),
        lengths=torch.tensor([count], dtype=torch.int32, device=device),
        starts=torch.tensor([0, count], dtype=torch.int32, device=device),
        longest_query=count,
        longest_key=count,
    )
    return Step(zeros[None], zeros[None], zeros[:1], batch)


# What stands before a row's pages in ``decode_rows``.
ROW_FIELDS = ("token", "source", "position", "slot", "length")


def decode_rows(parts: Sequenced[Part], page_size: int, rows: int, width: int) -> np.ndarray:
    """One token each of these parts as int32 ``[rows, fields + width]``: ROW_FIELDS, then the sequence's pages.

    Rows beyond the parts are padding: one token that is kept in page 0, which nobody reads.
    """
    table = np.zeros((rows, len(ROW_FIELDS) + width), np.int32)
    table[:, :5] = (0, -1, 0, 0, 1)
    for row, part in zip(table, parts, strict=False):
        sequence, at = part.sequence, part.sequence.computed
        (token,), source = _tokens_of(part)
        row[:5] = (token, source, at, sequence.slot(at, page_size), at + 1)
        row[5 : 5 + len(sequence.pages)] = sequence.pages
    return table


def with_unread(tokens: torch.Tensor, sources: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """``tokens [t]``, those whose ``sources [t]`` is a row of ``chosen`` taken from there (-1: as they are)."""
    return torch.where(sources >= 0, chosen[sources.clamp(min=0)], tokens)


def _tokens_of(part: Part) -> tuple[list[int], int]:
    """The part's known tokens; or one that is unread, as 0, and the row of ``chosen`` that has it (else -1)."""
    sequence, first = part.sequence, part.sequence.computed
    if first >= len(sequence.tokens):
        return [0], sequence.row
    return sequence.tokens[first : first + part.count], -1
