"""Batching: from a Recipe to the Mode that serves it, and how large its pool of keys and values is.

Adding a mode is one class and one row in ``_MODES``. This file does not know how a mode works.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from mcp_core.errors import RecipeError
from mcp_core.generation import Preparation
from mcp_core.inference.compilations import timed_preparation
from mcp_core.inference.continuous import Continuous
from mcp_core.inference.decoding import Decoder
from mcp_core.inference.joined_projections import join_projections
from mcp_core.inference.kv_cache import CacheFactory
from mcp_core.inference.mode import Mode
from mcp_core.inference.one_by_one import OneByOne
from mcp_core.inference.paged.host_pages import HostPages
from mcp_core.inference.paged.pages import PagePool
from mcp_core.inference.paged.runner import PagedRunner
from mcp_core.inference.paged.scheduler import Scheduler
from mcp_core.inference.static_batch import StaticBatch
from mcp_core.models.kv_pool import MOST_RUNNING, PAGE_TOKENS, host_limit_bytes, pool_pages
from mcp_core.models.loaded import LoadedModel, Report
from mcp_core.recipe import Compile, Recipe

__all__ = ["Parts", "build_mode"]


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What every mode is made from. ``is_cancelled`` is asked between the forward passes of a long prompt."""

    loaded: LoadedModel
    recipe: Recipe
    decoder: Decoder
    new_cache: CacheFactory
    is_cancelled: Callable[[str], bool]
    report: Report


def build_mode(parts: Parts) -> Mode:
    """The mode that this Recipe asks for, ready to serve. Raises RecipeError, OutOfMemory's causes."""
    recipe = parts.recipe
    if recipe.asks_too_much_of_kv:
        raise RecipeError(f"kv.kind: {recipe.kv.kind} holds one sequence at a time.", "Load with kv.kind dynamic.")
    paged = recipe.batching.mode == "off" and recipe.is_paged
    return _paged(parts, most_running=1) if paged else _MODES[recipe.batching.mode](parts)


def _off(parts: Parts) -> OneByOne:
    keeps = parts.recipe.kv.kind != "off"
    return OneByOne(parts.decoder, parts.new_cache, parts.loaded.max_context, parts.is_cancelled, keeps=keeps)


def _static(parts: Parts) -> Mode:
    loaded, batching = parts.loaded, parts.recipe.batching
    return StaticBatch(
        loaded.model,
        _off(parts),
        parts.new_cache,
        loaded.eos_ids,
        loaded.max_context,
        size=min(batching.max_requests, MOST_RUNNING),
        max_wait_s=batching.max_wait_ms / 1e3,
    )


def _continuous(parts: Parts) -> Mode:
    return _paged(parts, min(parts.recipe.batching.max_requests, MOST_RUNNING))


def _paged(parts: Parts, most_running: int) -> Mode:
    loaded, recipe = parts.loaded, parts.recipe
    _require_plain_attention(loaded.model)
    device = loaded.model.get_input_embeddings().weight.device
    if recipe.compile in ("compiled", "autotuned"):
        join_projections(loaded.model)  # before the pool takes what memory is left
    pages = pool_pages(recipe, loaded.resolved.architecture, loaded.max_context, device.type, _free_bytes(device))
    pool = PagePool(pages + 1, PAGE_TOKENS, share=recipe.prefix_cache)  # page 0 takes padding
    fp8 = recipe.kv.kind == "quantized-fp8"
    runner = PagedRunner(loaded.model, pages + 1, PAGE_TOKENS, recipe.attention, fp8=fp8)
    name: str = recipe.batching.mode
    if recipe.compile != "off":
        name = f"{name}, {_STEPS[recipe.compile]} steps"
    return Continuous(
        Scheduler(pool, max(recipe.batching.step_tokens, most_running), most_running),
        runner,
        _off(parts),
        loaded.eos_ids,
        loaded.max_context,
        device,
        _host_pages(runner, pool) if recipe.batching.mode != "off" else None,
        name=name,
        prepare=functools.partial(_prepare, runner, parts) if recipe.compile != "off" else None,
    )


def _host_pages(runner: PagedRunner, pool: PagePool) -> HostPages:
    limit = host_limit_bytes(runner.cache.nbytes, int(psutil.virtual_memory().available))
    return HostPages(runner.cache, pool, limit)


_STEPS: dict[Compile, str] = {"graphs": "recorded", "compiled": "compiled", "autotuned": "tuned"}


def _prepare(runner: PagedRunner, parts: Parts, most: int) -> Preparation:
    """Decode steps of up to ``most`` sequences, and short ones with prompts, as far as there are none yet."""
    recipe, context = parts.recipe, parts.loaded.max_context

    def on_part(fraction: float, text: str) -> None:
        parts.report("compile", fraction, text)

    with timed_preparation() as preparation:
        runner.prepare(recipe.compile, most, recipe.batching.step_tokens, -(-context // PAGE_TOKENS), on_part)
    return preparation


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps of freed tensors is free, too
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _require_plain_attention(model: Any) -> None:
    """Raise RecipeError for layers that keep something other than all keys and values, or attend in their own way.

    What a layer asks beyond that is seen when it is asked (``paged/attention.py``).
    """
    kinds = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ["full_attention"])
    found = ", ".join(f"layers of {kind}" for kind in sorted(kinds - {"full_attention"}))
    if not getattr(model, "_supports_attention_backend", False):
        found = f"{type(model).__name__}'s own attention"
    if found:
        raise RecipeError(
            f"batching.mode: this model has {found}; pages hold plain causal attention only.",
            "Set batching.mode to static or off, prefix_cache to false and compile to off.",
        )


_MODES: dict[str, Callable[[Parts], Mode]] = {"off": _off, "static": _static, "continuous": _continuous}
