"""PromptSteps: steps in which prompts take part, recorded: the rest of one, or several beside decoding sequences.

Such a step costs a device little, and a host hundreds of launches: computed as it comes, the first token waits for
the host alone (H100, 7B, 20 tokens: 49 ms, recorded 9.9: docs/h100.md), and everybody else with it. It is padded to
a size that there is and replayed with new inputs. This file does not know which sequences these are, or what a
model computes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from mcp_core.inference.paged.decode_steps import Computed, Forward, Heard
from mcp_core.inference.paged.graphs import Graphs
from mcp_core.inference.paged.packed_step import PackedStep
from mcp_core.inference.paged.scheduler import Part
from mcp_core.inference.transfer import fill

__all__ = ["PromptSteps", "step_sizes"]

# Coarse up to 256: such a step takes little longer than reading the weights once does, so padding is nearly free.
# Beyond, it costs what it computes, at most a third of it; and far beyond, a device takes longer than the host.
_SIZES = (16, 32, 64, 128, 256, 384, 512, 768, 1024)


def step_sizes(most: int) -> tuple[int, ...]:
    """Numbers of tokens worth recording where a step has ``most`` at most."""
    largest = min(most, _SIZES[-1])
    return (*(size for size in _SIZES if size < largest), largest)


class PromptSteps:
    """Of at most ``sequences``, of at most ``width`` pages each; unread tokens are in ``chosen``. There are none
    until they are prepared."""

    def __init__(
        self,
        forward: Forward,
        sequences: int,
        width: int,
        page_size: int,
        chosen: torch.Tensor,
        graphs: Graphs,
    ) -> None:
        self._forward = forward
        self.sequences = sequences
        self._width = width
        self._page_size = page_size
        self._chosen = chosen
        self._graphs = graphs
        longest = self._packed(_SIZES[-1]).length
        self._row = torch.zeros(longest, dtype=torch.int32, device=chosen.device)  # never moved: graphs read it
        self._logits: torch.Tensor | None = None  # of all sizes: each would keep its own
        self._sizes: tuple[int, ...] = ()
        self._steps: dict[int, Callable[[], Computed]] = {}

    def prepare(self, most: int, on_part: Heard) -> None:
        """Record steps of up to ``most`` tokens, unless there are some. Raises what the model raises, keeping none
        then.

        The largest first, so that the smaller ones share its memory.
        """
        if self._steps:
            return
        sizes = step_sizes(most)
        with ExitStack() as otherwise:
            otherwise.callback(self.close)
            for done, size in enumerate(reversed(sizes)):
                on_part(done / len(sizes), f"Recording {self._what}: size {done + 1} of {len(sizes)}.")
                self._steps[size] = self._recorded(size)
            otherwise.pop_all()
        self._sizes = sizes

    def close(self) -> None:
        """Give what they hold back; there are none then."""
        steps, self._steps, self._sizes, self._logits = self._steps, {}, (), None
        self._graphs.end(steps.values())

    def size_for(self, sequences: int, tokens: int) -> int | None:
        """The tokens that a step of so many is padded to; None when there is none of so many."""
        if not self._sizes or sequences > self.sequences or tokens > self._sizes[-1]:
            return None
        return self._sizes[bisect_left(self._sizes, tokens)]

    def run(self, parts: Sequence[Part], size: int) -> Computed:
        """The step of these parts, padded to ``size`` tokens, as ``size_for`` gave it."""
        row = self._packed(size).pack(parts)
        fill(self._row[: row.shape[0]], torch.from_numpy(row))
        logits, best = self._steps[size]()
        return Computed(logits[: len(parts)], best[: len(parts)])

    @property
    def _what(self) -> str:
        return "prefill steps" if self.sequences == 1 else "steps of prompts beside others"

    def _packed(self, size: int) -> PackedStep:
        return PackedStep(size, self.sequences, self._width, self._page_size)

    def _recorded(self, size: int) -> Callable[[], Computed]:
        row, packed = self._row, self._packed(size)
        begun = packed.pack(())  # of nobody's tokens
        row.zero_()
        row[: begun.shape[0]] = torch.from_numpy(begun).to(row.device)
        return self._graphs.record(lambda: self._compute(packed))

    def _compute(self, packed: PackedStep) -> Computed:
        """What is recorded."""
        logits = self._forward(packed.unpack(self._row, self._chosen))
        if self._logits is None:  # the first is computed before it is recorded
            self._logits = torch.empty_like(logits)
        self._logits.copy_(logits)
        return Computed(self._logits, logits.argmax(-1))
