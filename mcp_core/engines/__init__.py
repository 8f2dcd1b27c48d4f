"""Other engines that MCP starts, each from its own interpreter: a Recipe as their command line. Light, pure.

This file is the table of them; it does not know what any flag is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mcp_core.engines import sglang, vllm
from mcp_core.engines.launch import Given, Launch, NotCarried, Refusal
from mcp_core.recipe import Recipe

__all__ = ["FOREIGN", "ForeignEngine", "not_carried"]


@dataclass(frozen=True, slots=True)
class ForeignEngine:
    """What MCP knows of one engine. ``stored_methods`` are those of quantized checkpoints that it loads."""

    title: str
    package: str
    stored_methods: frozenset[str]
    refusals: Callable[[Recipe], Iterator[Refusal]]
    not_carried: Callable[[Recipe], Iterator[NotCarried]]
    launch: Callable[[Recipe, Given], Launch]


FOREIGN: dict[str, ForeignEngine] = {
    "vllm": ForeignEngine("vLLM", "vllm", vllm.STORED_METHODS, vllm.refusals, vllm.not_carried, vllm.launch),
    "sglang": ForeignEngine(
        "SGLang", "sglang", sglang.STORED_METHODS, sglang.refusals, sglang.not_carried, sglang.launch
    ),
}


def not_carried(recipe: Recipe) -> tuple[str, ...]:
    """What of this Recipe its engine does otherwise, a line a field; empty for engines of our own process."""
    engine = FOREIGN.get(recipe.engine)
    return tuple(map(str, engine.not_carried(recipe))) if engine else ()
