"""PagedRunner: a step's parts in, the logits of each sequence's last token out. One unmodified transformers model.

This file does not know which parts make a step (``scheduler.py``) or what becomes of logits (``sampling.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mcp_core.inference.paged import attention
from mcp_core.inference.paged.attention import PagedCache, head_dim_of
from mcp_core.inference.paged.batch import Step, make_step
from mcp_core.inference.paged.kernels import kernel_for
from mcp_core.inference.paged.scheduler import Part
from mcp_core.inference.paged.step_graph import StepGraphs
from mcp_core.recipe import Attention

__all__ = ["PagedRunner"]


class PagedRunner:
    """Owns the pool's tensors and, on request, the recorded decode steps. ``kernel`` names attention's kernel."""

    def __init__(self, model: Any, pages: int, page_size: int, implementation: Attention = "sdpa") -> None:
        weight = model.get_input_embeddings().weight
        self._model = model
        self._device: torch.device = weight.device
        head_dim = head_dim_of(model.config)
        self.kernel, kernel = kernel_for(self._device, weight.dtype, head_dim, implementation)
        self.cache = PagedCache(model.config, pages, page_size, weight.dtype, self._device, kernel)
        self._graphs: StepGraphs | None = None
        attention.register()

    @torch.inference_mode()
    def record(
        self,
        most: int,
        most_pages: int,
        on_size: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        """Record decode steps of up to ``most`` sequences of up to ``most_pages`` pages."""
        graphs = StepGraphs(self._forward, most, most_pages, self.cache.page_size, self._device)
        with self._attention():
            graphs.record(on_size)
        self._graphs = graphs

    @torch.inference_mode()
    def run(self, parts: Sequence[Part]) -> torch.Tensor:
        """Logits ``[parts, vocab]``, valid until the next call."""
        step = make_step(parts, self.cache.page_size, self._device)
        if self._graphs is not None and self._graphs.takes(step):
            return self._graphs.run(step)
        with self._attention():
            return self._forward(step)

    def close(self) -> None:
        """Give the pool and the recorded steps back."""
        self._graphs = None
        self.cache.keys, self.cache.values = [], []

    def _forward(self, step: Step) -> torch.Tensor:
        logits: torch.Tensor = self._model(
            step.tokens,
            position_ids=step.positions,
            use_cache=False,
            logits_to_keep=step.last,
            paged=(self.cache, step.batch),
        ).logits
        return logits[0]

    @contextmanager
    def _attention(self) -> Iterator[None]:
        """The model computes attention over pages inside, and as it was loaded outside."""
        config = self._model.config
        before = config._attn_implementation  # noqa: SLF001 - no public name
        config._attn_implementation = attention.NAME  # noqa: SLF001
        try:
            yield
        finally:
            config._attn_implementation = before  # noqa: SLF001
