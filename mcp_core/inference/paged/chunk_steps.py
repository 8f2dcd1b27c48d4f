"""ChunkSteps: the next tokens of one prompt, recorded: a short one, or the rest of one whose prefix is known.

Such a step costs a device little, and a host hundreds of launches: computed as it comes, the first token waits for
the host alone (H100, 7B, 20 tokens: 49 ms, recorded 9.9: docs/h100.md). It is padded at its end to a size that
there is and replayed with new inputs. This file does not know which sequence it is, or what a model computes.
"""

from __future__ import annotations

from bisect import bisect_left

import torch

from mcp_core.inference.paged.batch import CHUNK_FIELDS, PagedBatch, Step, chunk_row
from mcp_core.inference.paged.decode_steps import Computed, Forward, Heard
from mcp_core.inference.paged.graphs import Graphs, Recorded
from mcp_core.inference.paged.scheduler import Part
from mcp_core.inference.transfer import fill

__all__ = ["ChunkSteps", "chunk_sizes"]

# Coarse up to 256: such a step takes little longer than reading the weights once does, so padding is nearly free.
# Beyond, it costs what it computes, at most a third of it; and far beyond, a device takes longer than the host.
_SIZES = (16, 32, 64, 128, 256, 384, 512, 768, 1024)
_ALIGNED = 4  # int32 numbers in 16 bytes


def chunk_sizes(most: int) -> tuple[int, ...]:
    """Numbers of tokens worth recording where a step has ``most`` at most."""
    largest = min(most, _SIZES[-1])
    return (*(size for size in _SIZES if size < largest), largest)


class ChunkSteps:
    """Of sequences of at most ``width`` pages; there are none until they are prepared."""

    def __init__(self, forward: Forward, width: int, page_size: int, device: torch.device, graphs: Graphs) -> None:
        self._forward = forward
        self._page_size = page_size
        self._graphs = graphs
        # Padding may go on behind the longest sequence's end. Triton makes a kernel of its own for lengths that are
        # not at a multiple of 16 bytes, and only here they would not be: serving would make the other ones.
        self._width = -(-(width + -(-_SIZES[-1] // page_size)) // _ALIGNED) * _ALIGNED
        longest = self._length(_SIZES[-1])
        self._row = torch.zeros(longest, dtype=torch.int32, device=device)  # never moved: graphs read it
        self._sizes: tuple[int, ...] = ()
        self._steps: dict[int, Recorded[Computed]] = {}

    def prepare(self, most: int, on_part: Heard) -> None:
        """Record steps of up to ``most`` tokens, unless there are some. Raises what the model raises.

        The largest first, so that the smaller ones share its memory.
        """
        if self._steps:
            return
        sizes, made = chunk_sizes(most), {}
        for done, size in enumerate(reversed(sizes)):
            on_part(0.9 + 0.1 * done / len(sizes), f"Recording prefill steps: size {done + 1} of {len(sizes)}.")
            made[size] = self._recorded(size)
        self._sizes, self._steps = sizes, made

    def size_for(self, count: int) -> int | None:
        """The tokens that a step of ``count`` is padded to; None when there is none: for one token, which may be
        unread, and for too many.
        """
        if not self._sizes or not 1 < count <= self._sizes[-1]:
            return None
        return self._sizes[bisect_left(self._sizes, count)]

    def seconds(self, size: int) -> float:
        """What a recorded step of that size took."""
        return self._steps[size].replay_s

    @property
    def eager_s(self) -> float:
        """The least that a step takes which is not recorded: the host's part, seen at the smallest size."""
        return self._steps[self._sizes[0]].eager_s

    def run(self, part: Part, size: int) -> Computed:
        """The part's step, padded to ``size`` tokens, as ``size_for`` gave it."""
        row = chunk_row(part, self._page_size, size, self._width)
        fill(self._row[: self._length(size)], torch.from_numpy(row))
        return self._steps[size].replay()

    def _length(self, size: int) -> int:
        return self._width + len(CHUNK_FIELDS) + 3 * size

    def _recorded(self, size: int) -> Recorded[Computed]:
        row = self._row[: self._length(size)]
        row.zero_()
        row[self._width] = size  # of a sequence whose tokens are all kept in page 0, which nobody reads
        return self._graphs.record(lambda: self._compute(row))

    def _compute(self, row: torch.Tensor) -> Computed:
        """What is recorded: ``row`` as ``chunk_row`` makes it."""
        pages, fields = row[: self._width], row[self._width : self._length(0)]
        token, position, slot = row[self._length(0) :].long().view(3, -1)
        size = token.shape[0]
        batch = PagedBatch(
            slots=slot,
            pages=pages[None],
            lengths=fields[:1],
            starts=torch.arange(0, size + 1, size, device=row.device, dtype=torch.int32),
            longest_query=size,
            longest_key=self._width * self._page_size,
        )
        logits = self._forward(Step(token[None], position[None], fields[1:].long(), batch))
        return Computed(logits, logits.argmax(-1))
