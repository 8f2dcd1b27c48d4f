"""Layers packed for a while on cuda:0 are those that loading packs there. `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from mcp_core.evaluation.sensitivity import Judge, packer_of
from mcp_core.memory.layer_swap import linear_layers, packed_for_a_while
from mcp_core.models import catalog, loader
from mcp_core.models.loaded import LoadedModel
from mcp_core.recipe import Recipe

pytestmark = pytest.mark.gpu

SHAPE = {
    "layers": 2,
    "hidden": 512,
    "intermediate": 1024,
    "heads": 8,
    "kv_heads": 4,
    "vocab": 2000,
    "context": 1024,
}


def load(recipe: Recipe) -> LoadedModel:
    return loader.load(catalog.resolve(recipe.model), recipe, lambda *_: None)


@pytest.mark.parametrize(
    "scheme",
    [
        "bnb-int8",
        "bnb-nf4",
        "torchao-int8-weight-only",
        "torchao-int8-dynamic",
        "torchao-int4-weight-only",
        "torchao-fp8-dynamic",
    ],
)
def test_packed_for_a_while_is_what_loading_packs(scheme: str) -> None:
    base = {"model": {"source": "shape", "id": "custom", "shape": SHAPE}, "device": "cuda:0", "dtype": "bf16"}
    dense = Recipe.from_dict(base)
    recipe = dense.replace({"quantization.scheme": scheme})
    plain, quantized = load(dense), load(recipe)
    judge = Judge(plain.model, torch.randint(0, 2000, (2, 64), generator=torch.Generator().manual_seed(1)).tolist())
    held = torch.cuda.memory_allocated()
    with packed_for_a_while(plain.model, linear_layers(plain.model, ()), packer_of(plain, recipe)) as (was, is_now):
        expected = judge.distance()
    assert is_now < was
    assert judge.distance() == (0.0, 0.0, 1.0)
    assert torch.cuda.memory_allocated() <= held + 2**20
    judge.model = quantized.model
    assert judge.distance() == pytest.approx(expected, rel=0.02)
