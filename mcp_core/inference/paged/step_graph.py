"""StepGraphs: the decode step of n sequences, recorded once as a CUDA graph and replayed with new inputs.

A step with fewer sequences is padded to the next recorded size; padded rows write to page 0, which nobody reads.
The pool never moves, so a graph stays valid. This file does not know which sequences there are, or what is
computed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch

from mcp_core.inference.paged.batch import PagedBatch, Step

__all__ = ["StepGraphs", "graph_sizes"]

# logits [n, vocab] of each sequence's last token
Forward = Callable[[Step], torch.Tensor]


def graph_sizes(most: int) -> tuple[int, ...]:
    """Batch sizes worth recording, up to ``most`` and that one: padding wastes at most a third."""
    sizes = [size for size in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256) if size < most]
    return (*sizes, most)


class StepGraphs:
    """Graphs for up to ``most`` sequences of at most ``most_pages`` pages each."""

    def __init__(self, forward: Forward, most: int, most_pages: int, page_size: int, device: torch.device) -> None:
        self._forward = forward
        self._sizes = graph_sizes(most)
        self._inputs = _Inputs(self._sizes[-1], most_pages, device)
        self._longest_key = most_pages * page_size
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def record(self, on_size: Callable[[int, int], None] = lambda _done, _all: None) -> None:
        """Record every size, the largest first so that the smaller ones share its memory."""
        pool = torch.cuda.graph_pool_handle()
        for done, size in enumerate(reversed(self._sizes)):
            self._graphs[size] = self._recorded(size, pool)
            on_size(done + 1, len(self._sizes))

    def takes(self, step: Step) -> bool:
        """Whether the step is one token of each of few enough sequences."""
        return step.batch.longest_query == 1 and step.tokens.shape[1] <= self._sizes[-1]

    def run(self, step: Step) -> torch.Tensor:
        """Logits ``[n, vocab]``, valid until the next step."""
        count = step.tokens.shape[1]
        size = self._sizes[bisect_left(self._sizes, count)]
        self._inputs.set(step, size)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[:count]

    def _recorded(self, size: int, pool: Any) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        step = self._inputs.view(size, self._longest_key)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # libraries allocate and tune at their first calls, which a graph must not hold
                self._forward(step)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            logits = self._forward(step)
        return graph, logits


class _Inputs:
    """Fixed places for a step's inputs, of the largest size; a smaller one uses their beginning."""

    def __init__(self, size: int, most_pages: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.tokens, self.positions, self.slots = zeros(size), zeros(size), zeros(size)
        self.last = torch.arange(size, device=device)
        self.pages = zeros(size, most_pages, dtype=torch.int32)
        self.lengths = zeros(size, dtype=torch.int32) + 1
        self.starts = torch.arange(size + 1, device=device, dtype=torch.int32)

    def view(self, size: int, longest_key: int) -> Step:
        """A step over the first ``size`` rows of them."""
        batch = PagedBatch(
            slots=self.slots[:size],
            pages=self.pages[:size],
            lengths=self.lengths[:size],
            starts=self.starts[: size + 1],
            longest_query=1,
            longest_key=longest_key,
        )
        return Step(self.tokens[None, :size], self.positions[None, :size], self.last[:size], batch)

    def set(self, step: Step, size: int) -> None:
        """Take a step's inputs; the rows beyond them become padding."""
        count = step.tokens.shape[1]
        self.tokens[:count], self.positions[:count] = step.tokens[0], step.positions[0]
        self.slots[:count], self.lengths[:count] = step.batch.slots, step.batch.lengths
        self.pages[:count, : step.batch.pages.shape[1]] = step.batch.pages
        if count < size:
            self.slots[count:size].zero_()
            self.lengths[count:size].fill_(1)
            self.pages[count:size].zero_()
