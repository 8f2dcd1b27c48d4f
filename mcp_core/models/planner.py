"""The planner's questions: how long a context fits, how many users at once, where the weights go.

The first two are exact against ``Predictor.at``. This file does not know how memory is computed (``footprint.py``),
only that more never takes less.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mcp_core.models.footprint import Predictor
from mcp_core.models.packing import ModuleSize
from mcp_core.models.served_load import ServedLoad

__all__ = ["MOST_USERS", "ModuleGroup", "group_modules", "longest_context", "users_at", "without_numbers"]

# As many as a Recipe's batching.max_requests lets through.
MOST_USERS = 4096

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class ModuleGroup:
    """Modules of one name in every layer, such as ``model.layers.*.mlp.up_proj``. ``packed``: all, some or none."""

    name: str
    count: int
    parameters: int
    bytes: int
    packed: str
    dense_because: str


def longest_context(predictor: Predictor, concurrency: int = 1) -> int:
    """Most tokens (prompt and reply) of each of ``concurrency`` sequences that fit what is free now.

    At most the model's own context, whatever kv.max_context says; 0 where not even one token fits.
    """
    return _most(lambda tokens: predictor.at(ServedLoad(tokens, concurrency)).fits, predictor.architecture.context)


def users_at(predictor: Predictor, context_tokens: int) -> int:
    """Most sequences of ``context_tokens`` held at once that fit what is free now; at most ``MOST_USERS``, 0: none.

    That is what memory lets through; batching mode off still serves them one after the other.
    """
    return _most(lambda users: predictor.at(ServedLoad(context_tokens, users)).fits, MOST_USERS)


def group_modules(modules: Iterable[ModuleSize]) -> tuple[ModuleGroup, ...]:
    """The same module of every layer (and expert) as one row, largest first."""
    groups: dict[str, list[ModuleSize]] = {}
    for module in modules:
        groups.setdefault(without_numbers(module.name), []).append(module)
    rows = (_group(name, each) for name, each in groups.items())
    return tuple(sorted(rows, key=lambda row: row.bytes, reverse=True))


def without_numbers(name: str) -> str:
    """``model.layers.7.mlp`` as ``model.layers.*.mlp``."""
    return _NUMBER.sub("*", name)


def _group(name: str, modules: list[ModuleSize]) -> ModuleGroup:
    packed = {module.packed for module in modules}
    reasons = {module.dense_because for module in modules} - {""}
    return ModuleGroup(
        name=name,
        count=len(modules),
        parameters=sum(module.parameters for module in modules),
        bytes=sum(module.bytes for module in modules),
        packed="some" if len(packed) > 1 else "all" if True in packed else "none",
        dense_because="; ".join(sorted(reasons)),
    )


def _most(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to ``limit`` that fits, by halving."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
