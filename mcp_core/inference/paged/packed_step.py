"""PackedStep: a step's tensors as one row of numbers: packed on the host, one copy, unpacked where it is computed.

What is recorded reads the row where it lies, so every size has a place for as many sequences as may take part. This
file does not know what is recorded (``prompt_steps.py``).
"""

from __future__ import annotations

from collections.abc import Sequence as Sequenced
from dataclasses import dataclass

import numpy as np
import torch

from mcp_core.inference.paged.batch import PagedBatch, Step, columns, with_unread
from mcp_core.inference.paged.scheduler import Part

__all__ = ["PackedStep"]

_ALIGNED = 4  # int32 numbers in 16 bytes


@dataclass(frozen=True, slots=True)
class PackedStep:
    """``tokens`` of at most ``sequences``, of at most ``width`` pages each, one after the other in int32.

    Tokens that are padding belong to a sequence of their own, behind the real ones. They are kept in page 0, which
    nobody reads, and all but the last see nothing: it sees what was written there in the same step. Sequences that
    there are not have no tokens.
    """

    tokens: int
    sequences: int
    width: int
    page_size: int

    @property
    def length(self) -> int:
        """Numbers in a row, all sequences' pages included."""
        return self._places[3] + self._rows * self.width

    def pack(self, parts: Sequenced[Part]) -> np.ndarray:
        """The row's beginning: pages of sequences that there are not are left out, for nobody reads them."""
        table, count = columns(parts, self.page_size), len(parts)
        starts, last, tokens, pages = self._places
        real = int(table.starts[-1])
        row = np.zeros(pages + (count + 1) * self.width, np.int32)
        row[:count], row[count] = table.lengths, 1
        row[starts : starts + self._rows + 1] = self.tokens
        row[starts : starts + count + 1] = table.starts
        row[last : last + count] = table.starts[1:] - 1
        each = row[tokens:pages].reshape(4, self.tokens)
        each[1] = -1
        each[:, :real] = table.tokens, table.sources, table.positions, table.slots
        row[pages:].reshape(count + 1, self.width)[:count, : table.pages.shape[1]] = table.pages
        return row

    def unpack(self, row: torch.Tensor, chosen: torch.Tensor) -> Step:
        """The step of a whole ``row``, as ``pack`` began it; unread tokens are taken from ``chosen``."""
        starts, last, tokens, pages = self._places
        token, source, position, slot = row[tokens:pages].long().view(4, self.tokens)
        batch = PagedBatch(
            slots=slot,
            pages=row[pages : self.length].view(self._rows, self.width),
            lengths=row[: self._rows],
            starts=row[starts : starts + self._rows + 1],
            longest_query=self.tokens,
            longest_key=self.width * self.page_size,
        )
        wanted = row[last : last + self.sequences].long()
        return Step(with_unread(token, source, chosen)[None], position[None], wanted, batch)

    @property
    def _rows(self) -> int:
        """The real ones, and that of padding."""
        return self.sequences + 1

    @property
    def _places(self) -> tuple[int, int, int, int]:
        """Where starts, last rows, tokens and pages begin; lengths are first.

        Each at a multiple of 16 bytes, as tensors of their own are: Triton makes another kernel for others.
        """
        starts = _whole(self._rows)
        last = starts + _whole(self._rows + 1)
        tokens = last + _whole(self.sequences)
        return starts, last, tokens, tokens + _whole(4 * self.tokens)


def _whole(count: int) -> int:
    return -(-count // _ALIGNED) * _ALIGNED
