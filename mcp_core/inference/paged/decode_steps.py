"""DecodeSteps: one token each of n sequences, as one function of a few tensors: compiled, recorded, or both.

A step with fewer sequences is padded to a size that there is. On a CUDA device every size is recorded as a graph
and replayed with new inputs; the pool never moves, so a graph stays valid. torch.compile makes one function for a
single sequence, whose products it writes itself, and one for any more. This file does not know which sequences
there are, or what a model computes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch._dynamo import mark_dynamic
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from mcp_core.errors import RecipeError
from mcp_core.inference.paged.batch import ROW_FIELDS, PagedBatch, Step, with_unread
from mcp_core.inference.paged.graphs import Graphs
from mcp_core.inference.transfer import fill, to_device
from mcp_core.models.activation_memory import graph_sizes
from mcp_core.models.load_errors import first_line
from mcp_core.recipe import Compile

__all__ = ["Computed", "DecodeSteps", "Forward", "Heard"]

# How far preparing is: a part of 1, and what is done now.
Heard = Callable[[float, str], None]

# For batch 1 inductor writes the products itself; this tunes their blocks (docs/h100.md: 69.5 % of the floor
# without, 77.5 % with; max_autotune was slower than either).
_TUNED: dict[str, Any] = {"coordinate_descent_tuning": True}


class Computed(NamedTuple):
    """``logits [n, vocab]`` of each sequence's last token and ``best [n]``, the likeliest; until the next step."""

    logits: torch.Tensor
    best: torch.Tensor


# From a step to the logits [n, vocab] of each sequence's last token.
Forward = Callable[[Step], torch.Tensor]


class DecodeSteps:
    """For as many sequences as ``prepare`` was told, of at most ``width`` pages each; they leave their tokens in
    ``chosen``, which has a place for as many as there may ever be."""

    def __init__(
        self,
        forward: Forward,
        kind: Compile,
        width: int,
        page_size: int,
        chosen: torch.Tensor,
        graphs: Graphs,
    ) -> None:
        self.width = width
        self._forward = forward
        self._page_size = page_size
        self._chosen = chosen
        self._records = chosen.is_cuda
        self._sizes: tuple[int, ...] = ()
        self._rows = _padding(chosen.shape[0], width, chosen.device)  # never moved: graphs read them where they are
        self._graphs = graphs
        self._recordings: dict[int, Callable[[], Computed]] = {}
        self._one, self._many = _compiled(self._compute, kind)
        self._compiled = 0  # of these two

    def prepare(self, most: int, on_part: Heard) -> None:
        """Steps of up to ``most`` sequences: compile, and record every size on a CUDA device; what there is stays.

        Raises what compiling and the model raise; then there are the sizes that there were.
        """
        if self._sizes and most <= self._sizes[-1]:
            return
        sizes = tuple(sorted({*self._sizes, *graph_sizes(most)}))
        # What the last step left would be computed again here, with tokens that have been chosen since.
        self._rows.copy_(_padding(self._chosen.shape[0], self.width, self._chosen.device))
        passes = [self._one] if most == 1 else [self._one, self._many]
        for done, compute in enumerate(passes[self._compiled :], self._compiled):
            if compute != self._compute:
                words = "one sequence" if done == 0 else "many sequences"
                on_part(0.4 * done, f"Compiling the decode step of {words}.")
                self._compile(compute, self._rows[: 1 + done])
            self._compiled = done + 1
        if self._records:
            self._record([size for size in sizes if size not in self._sizes], on_part)
        self._sizes = sizes

    def _compile(self, compute: Any, rows: torch.Tensor) -> None:
        if rows.shape[0] > 1:
            mark_dynamic(rows, 0)  # any number of sequences, in one function
        try:
            compute(rows)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            cause = getattr(error, "inner_exception", error)  # a backend's own error stands inside
            raise RecipeError(
                f"compile: torch cannot compile this model's decode step: {first_line(cause)}",
                "Set compile to graphs on an NVIDIA device, else to off.",
            ) from error

    def size_for(self, count: int) -> int | None:
        """The rows that a step of ``count`` sequences is padded to; None when there is no such step."""
        if not self._sizes or count > self._sizes[-1]:
            return None
        return self._sizes[bisect_left(self._sizes, count)] if self._records else count

    def run(self, rows: torch.Tensor, count: int) -> Computed:
        """The step of ``rows`` (``batch.decode_rows``, as many as ``size_for`` gave), ``count`` of them real."""
        size = rows.shape[0]
        if not self._records:
            computed = (self._one if size == 1 else self._many)(to_device(rows, self._chosen.device))
        else:
            fill(self._rows[:size], rows)
            computed = self._recordings[size]()
        return Computed(computed.logits[:count], computed.best[:count])

    def _compute(self, rows: torch.Tensor) -> Computed:
        """What is compiled and recorded: ``rows`` as ``decode_rows`` makes them."""
        count = rows.shape[0]
        token, source, position, slot = (rows[:, index].long() for index in range(4))
        batch = PagedBatch(
            slots=slot,
            pages=rows[:, len(ROW_FIELDS) :].contiguous(),
            lengths=rows[:, 4].contiguous(),
            starts=torch.arange(count + 1, device=rows.device, dtype=torch.int32),
            longest_query=1,
            longest_key=self.width * self._page_size,
        )
        tokens = with_unread(token, source, self._chosen)
        last = torch.arange(count, device=rows.device)
        logits = self._forward(Step(tokens[None], position[None], last, batch))
        best = logits.argmax(-1)
        self._chosen[:count].copy_(best)
        return Computed(logits, best)

    def _record(self, sizes: Sequence[int], on_part: Heard) -> None:
        """The largest first, so that the smaller ones share its memory."""
        made: dict[int, Callable[[], Computed]] = {}
        for done, size in enumerate(reversed(sizes)):
            on_part(0.8 + 0.1 * done / len(sizes), f"Recording decode steps: size {done + 1} of {len(sizes)}.")
            made[size] = self._recorded(size)
        self._recordings |= made

    def _recorded(self, size: int) -> Callable[[], Computed]:
        compute, rows = self._one if size == 1 else self._many, self._rows[:size]
        return self._graphs.record(lambda: compute(rows))


def _compiled(compute: Callable[[torch.Tensor], Computed], kind: Compile) -> tuple[Any, Any]:
    """The function for one row, and the one for more: torch compiles each for itself at its first call."""
    if kind == "graphs":
        return compute, compute
    options = _TUNED if kind == "autotuned" else None
    one = torch.compile(compute, fullgraph=True, dynamic=False, options=options)
    return one, torch.compile(compute, fullgraph=True, options=options)


def _padding(rows: int, width: int, device: torch.device) -> torch.Tensor:
    """Rows that ``decode_rows`` gives where there is no sequence: what is compiled and recorded with."""
    table = torch.zeros((rows, len(ROW_FIELDS) + width), dtype=torch.int32, device=device)
    table[:, 1], table[:, 4] = -1, 1
    return table
