"""PagedRunner: a step's parts in, the logits of each sequence's last token out. One unmodified transformers model.

This file does not know which parts make a step (``scheduler.py``) or what becomes of logits (``choosing.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch._dynamo import config as compiler

from mcp_core.inference.paged import attention
from mcp_core.inference.paged.attention import PagedCache, head_dim_of
from mcp_core.inference.paged.batch import Step, decode_rows, make_step, padding_step
from mcp_core.inference.paged.decode_steps import Computed, DecodeSteps, Heard
from mcp_core.inference.paged.fused_functions import FusedFunctions
from mcp_core.inference.paged.graphs import Graphs
from mcp_core.inference.paged.kernels import gathered, kernel_for
from mcp_core.inference.paged.prompt_steps import PromptSteps
from mcp_core.inference.paged.scheduler import Part
from mcp_core.models.kv_pool import MOST_RUNNING
from mcp_core.recipe import Attention, Compile

__all__ = ["PagedRunner"]


# Where a prefill step's small functions are compiled, and for how many tokens at first: any number will do later,
# but torch chooses blocks by that one. On a host it saves too little for the 12-20 s that it takes at the first
# start (SmolLM2-135M, 1,000 tokens on one thread: 4-9 % of a step in fp32, 1-2 % in bf16).
_FUSED_ON = ("cuda",)
_FUSED_TOKENS = 1024
# Torch keeps what it compiled of a function for a process's life, of closed runners too, and its own limit is 8: a
# decode step's two are those of four models, or of four dtypes and lengths of one. A fifth could not be compiled.
_COMPILED_MOST = 64


class PagedRunner:
    """Owns the pool's tensors, the newest token of each sequence and, on request, steps made ahead: decode steps,
    and on a CUDA device short steps in which prompts take part: of one sequence, or of many.

    ``kernel`` names attention's kernel.
    """

    def __init__(
        self, model: Any, pages: int, page_size: int, implementation: Attention = "sdpa", *, fp8: bool = False
    ) -> None:
        weight = model.get_input_embeddings().weight
        device: torch.device = weight.device
        head_dim = head_dim_of(model.config)
        self.kernel, kernel = kernel_for(device, weight.dtype, head_dim, implementation)
        self.kernel += ", from fp8" * fp8
        self.cache = PagedCache(model.config, pages, page_size, weight.dtype, device, kernel, fp8=fp8)
        self._model = model
        # A live change may let more run than were asked for at first.
        self._chosen = torch.zeros(MOST_RUNNING, dtype=torch.long, device=device)
        self._decode: DecodeSteps | None = None
        self._alone: PromptSteps | None = None
        self._beside: PromptSteps | None = None
        self._fuses = device.type in _FUSED_ON
        self._fused: FusedFunctions | None = None
        self._graphs = Graphs()
        # One asks the host how long sequences are, the other makes a whole context dense at every step.
        self._records_prompts = device.type == "cuda" and kernel is not gathered and not fp8
        attention.register()

    @torch.inference_mode()
    def prepare(self, kind: Compile, most: int, most_tokens: int, most_pages: int, on_part: Heard) -> None:
        """Compile or record decode steps of up to ``most`` sequences of up to ``most_pages`` pages each, and record
        steps of up to ``most_tokens`` in which prompts take part, as far as there are none yet; any other step is
        computed all the same. Raises RecipeError.

        No token may be unread: they are overwritten.
        """
        decode = self._decode or self._new_decode(kind, most_pages)
        with self._attention(), compiler.patch(recompile_limit=_COMPILED_MOST):
            decode.prepare(most, on_part)
            if self._fuses and self._fused is None and kind in ("compiled", "autotuned"):
                on_part(0.9, "Compiling the small functions of prefill steps.")
                self._fused = self._compiled_functions(most_tokens)
            if self._records_prompts:
                self._record_prompts(most, most_tokens, most_pages, on_part)
        self._decode = decode

    def _new_decode(self, kind: Compile, most_pages: int) -> DecodeSteps:
        self._graphs.close()  # of an attempt that failed
        self._graphs, self._alone, self._beside = Graphs(), None, None
        return DecodeSteps(self._forward, kind, most_pages, self.cache.page_size, self._chosen, self._graphs)

    def _record_prompts(self, most: int, most_tokens: int, most_pages: int, on_part: Heard) -> None:
        """Of one sequence, and of as many as may run: again where more may than before."""
        if self._alone is None:
            alone, longest = self._new_prompts(1, most_pages), min(most_tokens, most_pages * self.cache.page_size)
            alone.prepare(longest, lambda part, text: on_part(0.9 + 0.05 * part, text))
            self._alone = alone
        if most > 1 and (self._beside is None or self._beside.sequences < most):
            if self._beside is not None:
                self._beside.close()
            beside = self._new_prompts(most, most_pages)
            beside.prepare(most_tokens, lambda part, text: on_part(0.95 + 0.05 * part, text))
            self._beside = beside

    def _new_prompts(self, sequences: int, most_pages: int) -> PromptSteps:
        page_size = self.cache.page_size
        return PromptSteps(self._forward_fused, sequences, most_pages, page_size, self._chosen, self._graphs)

    @torch.inference_mode()
    def run(self, parts: Sequence[Part]) -> Computed:
        """Each part's logits and likeliest token, valid until the next call.

        Tokens that are still unread are taken from what ``keep`` was given.
        """
        with self._attention():
            computed = self._run_made(parts)
            if computed is None:
                logits = self._forward_fused(make_step(parts, self.cache.page_size, self._chosen))
                computed = Computed(logits, logits.argmax(-1))
        return computed

    def _run_made(self, parts: Sequence[Part]) -> Computed | None:
        """By a step that was made ahead; None where there is none of that size."""
        if all(part.count == 1 for part in parts):
            return self._run_decode(parts)
        prompts = self._alone if len(parts) == 1 else self._beside
        size = prompts.size_for(len(parts), sum(part.count for part in parts)) if prompts else None
        return prompts.run(parts, size) if prompts and size else None

    def _run_decode(self, parts: Sequence[Part]) -> Computed | None:
        decode = self._decode
        size = decode.size_for(len(parts)) if decode else None
        if decode is None or size is None:
            return None
        rows = decode_rows(parts, self.cache.page_size, size, decode.width)
        return decode.run(torch.from_numpy(rows), len(parts))

    def keep(self, tokens: torch.Tensor) -> None:
        """Hold the step's tokens for the next one: each in the row that its sequence is told."""
        self._chosen[: tokens.shape[0]].copy_(tokens)

    def close(self) -> None:
        """Give the pool and the prepared steps back."""
        self._decode = self._alone = self._beside = self._fused = None
        self._graphs.close()
        self.cache.close()
        if self._chosen.is_cuda:
            torch.cuda.empty_cache()  # the next pool takes what the driver calls free

    def _compiled_functions(self, most_tokens: int) -> FusedFunctions:
        fused, page_size, device = FusedFunctions(self._model), self.cache.page_size, self._chosen.device
        longest = (min(most_tokens, _FUSED_TOKENS) - 1) | 1  # odd: no other size is likely to equal it
        counts = (longest, longest // 2 | 1)
        fused.compile(lambda count: self._forward(padding_step(count, page_size, device)), counts)
        return fused

    def _forward_fused(self, step: Step) -> torch.Tensor:
        """Of steps that torch does not compile as a whole."""
        with self._fused.used() if self._fused else nullcontext():
            return self._forward(step)

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
