"""Layers packed for a while: put back as they were, and nothing of what was packed stays."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel

from mcp_core.evaluation.sensitivity import packer_of
from mcp_core.memory.layer_swap import Packer, linear_layers, packed_for_a_while
from mcp_core.models import catalog, loader
from mcp_core.models.loaded import LoadedModel
from mcp_core.recipe import Recipe

SIZES = {"layers": 2, "hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 4, "vocab": 300, "context": 64}
SHAPE = {"model": {"source": "shape", "id": "custom", "shape": SIZES}, "device": "cpu", "dtype": "bf16"}
IDS = torch.arange(3, 19)[None]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    recipe = Recipe.from_dict(SHAPE)
    return loader.load(catalog.resolve(recipe.model), recipe, lambda *_: None)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """What is tied to itself stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def packer(loaded: LoadedModel, scheme: str) -> Packer:
    return packer_of(loaded, Recipe.from_dict(SHAPE).replace({"quantization.scheme": scheme}))


@torch.inference_mode()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


@pytest.mark.parametrize("scheme", ["bnb-int8", "bnb-nf4", "torchao-int8-weight-only", "torchao-int8-dynamic"])
def test_packed_weights_are_gone_without_the_collector(loaded: LoadedModel, uncollected: None, scheme: str) -> None:
    names, before, pack = linear_layers(loaded.model, ()), logits(loaded.model), packer(loaded, scheme)
    with packed_for_a_while(loaded.model, names, pack):
        logits(loaded.model)  # what a library warns of at its first use, pytest keeps, with all it saw
    with packed_for_a_while(loaded.model, names, pack) as (was, is_now):
        assert is_now < was
        assert not torch.equal(logits(loaded.model), before)
        weights = [weakref.ref(loaded.model.get_submodule(name).weight) for name in names]
    assert [each() for each in weights] == [None] * len(names)
    assert torch.equal(logits(loaded.model), before)


def test_a_packer_that_fails_leaves_the_model_as_it_was(loaded: LoadedModel) -> None:
    names, before = linear_layers(loaded.model, ()), logits(loaded.model)
    pack_all = packer(loaded, "bnb-nf4")

    def fails(model: PreTrainedModel, names: tuple[str, ...]) -> None:
        pack_all(model, names[:3])
        raise MemoryError

    with pytest.raises(MemoryError), packed_for_a_while(loaded.model, names, fails):
        raise AssertionError
    assert torch.equal(logits(loaded.model), before)
