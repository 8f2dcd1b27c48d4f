"""Where weights are placed: transformers takes one block ahead, unless some of them are replaced later."""

from __future__ import annotations

import pytest
from transformers import modeling_utils

from mcp_core.memory.device_allocator import weights_placed_for
from mcp_core.models import catalog, loader
from mcp_core.recipe import ModelRef, Recipe, ShapeSpec

TINY = ShapeSpec(layers=1, hidden=16, intermediate=32, heads=2, kv_heads=1, vocab=300, context=64)


@pytest.mark.parametrize(("kind", "times"), [("off", 1), ("graphs", 1), ("compiled", 0), ("autotuned", 0)])
def test_one_block_is_taken_ahead_unless_projections_are_joined(monkeypatch, kind, times):
    asked = []
    monkeypatch.setattr(modeling_utils, "caching_allocator_warmup", lambda *_: asked.append(1))
    before = modeling_utils.caching_allocator_warmup
    ref = ModelRef(source="shape", id="custom", shape=TINY)
    recipe = Recipe(model=ref, device="cpu", dtype="fp32").model_copy(update={"compile": kind})
    loader.load(catalog.resolve(ref), recipe, lambda *_: None)
    assert len(asked) == times
    assert modeling_utils.caching_allocator_warmup is before


def test_transformers_has_its_function_back_after_an_error():
    before = modeling_utils.caching_allocator_warmup
    recipe = Recipe().replace({"compile": "compiled", "batching.mode": "continuous"})
    placed = weights_placed_for(recipe)
    with pytest.raises(RuntimeError, match="torn"), placed:
        raise RuntimeError("torn")
    assert modeling_utils.caching_allocator_warmup is before
