"""Blocks of device memory that weights lie in: a block each, where some are replaced by others once they are there.

This file does not know which weights those are (``inference/joined_projections.py``) or how a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import modeling_utils

from mcp_core.recipe import Recipe

__all__ = ["weights_placed_for"]


@contextmanager
def weights_placed_for(recipe: Recipe) -> Iterator[None]:
    """What is loaded inside lies in one block, as transformers has it, unless the Recipe's steps join projections.

    A block goes back to the driver as a whole. Of weights that are replaced in the only one nothing did: a 7B shape
    kept 2.8 GB (docs/h100.md). transformers' function is replaced meanwhile: one load at a time.
    """
    before = modeling_utils.caching_allocator_warmup
    if recipe.compile in ("compiled", "autotuned"):
        modeling_utils.caching_allocator_warmup = _take_nothing_ahead
    try:
        yield
    finally:
        modeling_utils.caching_allocator_warmup = before


def _take_nothing_ahead(*_: object) -> None:
    pass
