"""KvPool: how many pages of keys and values a paged engine holds. Pure arithmetic, for the planner and the engine.

This file does not know what pages are used for (``inference/paged/``).
"""

from __future__ import annotations

from mcp_core.models.architecture import Architecture
from mcp_core.models.kv_memory import stored_bytes
from mcp_core.recipe import Recipe

__all__ = ["MOST_RUNNING", "PAGE_TOKENS", "host_limit_bytes", "page_bytes", "pool_pages"]

# Prefixes are shared by whole pages, and a sequence wastes half a page: small ones serve both.
PAGE_TOKENS = 16
# Sequences in one step, at most.
MOST_RUNNING = 256
# Where batching.kv_blocks is null: on a host this many tokens for each of 16 sequences, on a device what is free.
_HOST_SEQUENCES, _HOST_TOKENS = 16, 1024
_DEVICE_SHARE = 0.9
# Of the host's available memory, for what preempted requests had in the pool.
_KEPT_SHARE = 0.25
# Left on a device for the activations of a step and recorded graphs, beside the share.
_DEVICE_RESERVE_BYTES = 3 * 10**9


def page_bytes(recipe: Recipe, architecture: Architecture) -> int:
    """Bytes of one page: keys and values of PAGE_TOKENS tokens in every layer."""
    return round(architecture.kv_elements_per_token * stored_bytes(recipe, architecture)) * PAGE_TOKENS


def pool_pages(recipe: Recipe, architecture: Architecture, context: int, kind: str, free_bytes: int) -> int:
    """Pages of the pool on a device of that kind with ``free_bytes`` left once the weights are there.

    What the Recipe says, else at least one full context: on a host a modest number, on a device nearly all that is
    free, bounded by what as many full contexts as may run could use.
    """
    if recipe.batching.kv_blocks is not None:
        return recipe.batching.kv_blocks
    one = -(-context // PAGE_TOKENS)
    running = 1 if recipe.batching.mode == "off" else min(recipe.batching.max_requests, MOST_RUNNING)
    most = one * running * (4 if recipe.prefix_cache and running == 1 else 1)  # kept prefixes want room too
    if kind == "cpu":
        sequences = min(_HOST_SEQUENCES, running)
        return max(one, min(most, sequences * _HOST_TOKENS // PAGE_TOKENS))
    usable = max(0, int(free_bytes * _DEVICE_SHARE) - _DEVICE_RESERVE_BYTES)
    return max(one, min(most, usable // page_bytes(recipe, architecture)))


def host_limit_bytes(pool_bytes: int, available_bytes: int) -> int:
    """Host memory for keys and values of preempted requests: as much as the pool, and a quarter of what is free."""
    return min(pool_bytes, int(available_bytes * _KEPT_SHARE))
