"""A quantized random model is never dense as a whole: dense tensors that are alive at once, counted by storage."""

from __future__ import annotations

from dataclasses import replace
from types import EllipsisType
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from mcp_core import hardware
from mcp_core.models import catalog, loader, random_weights, shapes
from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.loaded import LoadedModel
from mcp_core.models.packing import pack
from mcp_core.recipe import ModelRef, Quantization, Recipe, SchemeName, ShapeSpec

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:MatMul8bitLt")]

SIZES = ShapeSpec(layers=3, hidden=128, intermediate=192, heads=4, kv_heads=2, head_dim=32, vocab=300, context=64)
SCHEMES: tuple[SchemeName, ...] = (
    "bnb-int8",
    "bnb-nf4",
    "bnb-fp4",
    "torchao-int8-weight-only",
    "torchao-int8-dynamic",
    "torchao-int4-weight-only",
    "torchao-fp8-weight-only",
)


class Alive:
    """Every tensor that was drawn, and the most of those to be packed that were alive at one time."""

    def __init__(self) -> None:
        self.drawn: dict[str, StorageWeakRef] = {}
        self.most = 0

    def saw(self, name: str, tensor: torch.Tensor) -> None:
        self.drawn[name] = StorageWeakRef(tensor.untyped_storage())
        self.most = max(self.most, len(self.to_pack()))

    def to_pack(self) -> list[str]:
        return [
            name for name, storage in self.drawn.items() if name.endswith("_proj.weight") and not storage.expired()
        ]


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Alive:
    seen = Alive()
    original = random_weights.RandomTensor.__getitem__

    def draw(self: random_weights.RandomTensor, index: EllipsisType) -> torch.Tensor:
        tensor = original(self, index)
        seen.saw(self.name, tensor)
        return tensor

    monkeypatch.setattr(random_weights.RandomTensor, "__getitem__", draw)
    return seen


def resolve(name: str, monkeypatch: pytest.MonkeyPatch) -> ResolvedModel:
    """The shape of that name at a size of three layers and eight experts."""
    if name == "custom":
        return catalog.resolve(ModelRef(source="shape", id="custom", shape=SIZES))
    family = shapes._FAMILIES[name]
    monkeypatch.setitem(shapes.SHAPES, name, SIZES)
    monkeypatch.setitem(shapes._FAMILIES, name, replace(family, experts=replace(family.experts, total=8)))
    return catalog.resolve(ModelRef(source="shape", id=name))


def load(resolved: ResolvedModel, scheme: SchemeName, **changes: Any) -> LoadedModel:
    options = Quantization(scheme=scheme, group_size=32 if "int4" in scheme else None)
    recipe = Recipe(model=resolved.ref, device="cpu", dtype="bf16", quantization=options, **changes)
    return loader.load(resolved, recipe, lambda *_: None)


def predicted_bytes(loaded: LoadedModel, scheme: SchemeName) -> int:
    """By shapes alone."""
    options, machine = Quantization(scheme=scheme), hardware.detect()
    as_loaded = loaded.resolved.as_loaded(options, machine.device("cpu"), machine)
    return pack(as_loaded, "bf16", options).total_bytes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_dense_matrix_at_a_time(scheme: SchemeName, alive: Alive, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(resolve("custom", monkeypatch), scheme)
    assert loaded.effective.quantized_modules == 3 * 7
    assert alive.most <= 2
    assert alive.to_pack() == []


@pytest.mark.parametrize("scheme", ["bnb-nf4", "torchao-int8-weight-only"])
def test_one_expert_at_a_time(scheme: SchemeName, alive: Alive, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(resolve("qwen3-30b-a3b", monkeypatch), scheme)
    assert loaded.effective.quantized_modules == 3 * (4 + 8 * 3)
    assert alive.most <= 2
    assert loaded.weights_bytes == pytest.approx(predicted_bytes(loaded, scheme), rel=0.001)
    with torch.inference_mode():
        assert loaded.model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_fused_experts_that_no_scheme_packs_are_named(alive: Alive, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(resolve("gpt-oss-20b", monkeypatch), "torchao-int8-weight-only", attention="eager")
    assert loaded.effective.quantized_modules == 3 * 4
    assert loaded.effective.skip_reasons["model.layers.0.mlp.experts"] == "GptOssExperts is no linear layer"
    assert loaded.weights_bytes == pytest.approx(predicted_bytes(loaded, "torchao-int8-weight-only"), rel=0.001)
    assert alive.to_pack() == []


def test_the_instrument_sees_a_dense_model(alive: Alive, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(resolve("custom", monkeypatch), "none")
    assert loaded.effective.quantized_modules == 0
    assert alive.most == len(alive.to_pack()) == 3 * 7
