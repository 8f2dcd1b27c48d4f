"""The two ways of an experiment: the same work done by each, its time, its memory, and how far answers differ.

This file does not know how often or in what order they are done (``experiment_job.py``).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from mcp_core.evaluation.experiment_values import Agreement
from mcp_core.evaluation.experiments import Experiment
from mcp_core.evaluation.fidelity_text import builtin_evaluation
from mcp_core.evaluation.sensitivity import passages
from mcp_core.inference.kv_cache import CacheFactory, cache_factory, extend
from mcp_core.memory.attention import backend_in
from mcp_core.memory.checkpointing import checkpointing
from mcp_core.memory.switches import switches_on
from mcp_core.models.loaded import LoadedModel
from mcp_core.recipe import Recipe
from mcp_core.serving import process_memory

__all__ = ["Arm", "Work", "arms_of", "distribution_agreement", "peak_bytes", "timed_ms"]


@dataclass(frozen=True, slots=True)
class Work:
    """A prompt, and greedy tokens after it. With ``new`` 0 the prompt is what counts, else the tokens are."""

    what: str
    prompt: tuple[int, ...]
    new: int


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One way to compute: a model, its cache, and the settings that hold while it runs."""

    label: str
    model: PreTrainedModel
    new_cache: CacheFactory
    max_context: int
    weights_bytes: int
    settings: Callable[[], AbstractContextManager[Any]]
    note: str = ""

    @torch.inference_mode()
    def do(self, work: Work) -> tuple[tuple[int, ...], float]:
        """The greedy tokens, and ms of the part that counts."""
        device = self.model.device
        with self.settings():
            cache = self.new_cache()
            started_s = _now_s(device)
            token = self._next(torch.tensor([work.prompt], device=device), cache)
            chosen = [token]
            if work.new:
                started_s = _now_s(device)
            for _ in range(work.new):
                token = self._next(token, cache)
                chosen.append(token)
            elapsed_s = _now_s(device) - started_s
        return tuple(int(each) for each in chosen), elapsed_s * 1e3

    def _next(self, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        return extend(self.model, tokens, cache, logits_to_keep=1)[:, -1].float().argmax(-1, keepdim=True)

    @torch.inference_mode()
    def log_probabilities(self, ids: Sequence[int]) -> torch.Tensor:
        """``[tokens, vocab]``, fp32."""
        with self.settings():
            logits: torch.Tensor = self.model(torch.tensor([ids], device=self.model.device), use_cache=False).logits
        return logits[0].float().log_softmax(-1)


def arms_of(
    what: Experiment, baseline: LoadedModel, changed: LoadedModel, before: Recipe, after: Recipe
) -> tuple[Arm, Arm]:
    """Both ways; the same loaded model may serve both."""
    on = what.name == "gradient-checkpointing"
    return (
        _arm(what.baseline_label, baseline, before, checkpointed=False),
        _arm(what.changed_label, changed, after, checkpointed=on),
    )


def _arm(label: str, loaded: LoadedModel, recipe: Recipe, *, checkpointed: bool) -> Arm:
    model, device = loaded.model, torch.device(recipe.device)

    def settings() -> AbstractContextManager[Any]:
        stack = ExitStack()
        model.set_attn_implementation(recipe.attention)
        stack.enter_context(switches_on(recipe.switches, device))
        stack.enter_context(checkpointing(model, on=checkpointed))
        return stack

    return Arm(
        label=label,
        model=model,
        new_cache=cache_factory(recipe.kv.kind, model.config, loaded.max_context),
        max_context=loaded.max_context,
        weights_bytes=loaded.weights_bytes,
        settings=settings,
        note=_kernel_note(model, settings) if recipe.attention == "sdpa" and label == "sdpa" else "",
    )


def _kernel_note(model: PreTrainedModel, settings: Callable[[], AbstractContextManager[Any]]) -> str:
    def probe() -> None:
        with torch.inference_mode():
            model(torch.arange(3, 35, device=model.device)[None], use_cache=False)

    with settings():
        _, backend = backend_in(probe, model)
    return f"sdpa ran its {backend} kernel." if backend else ""


def distribution_agreement(baseline: Arm, changed: Arm, loaded: LoadedModel, tokens: int) -> Agreement | None:
    """On passages of the built-in evaluation set; None for random weights, whose predictions mean nothing."""
    if loaded.random_weights:
        return None
    texts = passages(builtin_evaluation().documents, lambda text: loaded.tokenizer.encode(text).ids, tokens)
    same, divergences = [], []
    for ids in texts:
        before, after = baseline.log_probabilities(ids), changed.log_probabilities(ids)
        same.append(before.argmax(-1) == after.argmax(-1))
        divergences.append((before.exp() * (before - after)).sum(-1).clamp(min=0))
    kl = torch.cat(divergences)
    return Agreement(tokens=kl.numel(), top1=float(torch.cat(same).float().mean()), kl_mean=float(kl.mean()))


def timed_ms(work: Callable[[], Any], device: torch.device) -> float:
    """ms of the work; what it returns, if it timed a part of itself."""
    started_s = _now_s(device)
    part_ms = work()
    return float(part_ms) if part_ms is not None else (_now_s(device) - started_s) * 1e3


def peak_bytes(work: Callable[[], Any], device: torch.device, weights_bytes: int) -> int | None:
    """``weights_bytes`` and the most that the work held above what was there before; None where not counted."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(weights_bytes + torch.cuda.max_memory_allocated(device) - before)
    process_memory.trim()
    start = process_memory.read_memory()
    if not process_memory.reset_peak() or start is None:
        return None
    work()
    end = process_memory.read_memory()
    if end is None or end.peak_bytes is None:
        return None
    return weights_bytes + max(0, end.peak_bytes - start.resident_bytes)


def _now_s(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
