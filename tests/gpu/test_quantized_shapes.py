"""A quantized shape is never dense on the device: the allocator's peak, against what the packed model weighs."""

from __future__ import annotations

import gc

import pytest
import torch

from mcp_core import conflicts, hardware
from mcp_core.models import catalog, footprint, loader, shapes
from mcp_core.recipe import ModelRef, Quantization, Recipe, ShapeSpec
from mcp_core.schemes import SCHEMES

pytestmark = pytest.mark.gpu

# 1.6 billion weights in 224 matrices: dense 3.3 GB, the largest matrix 23 MB.
SIZES = ShapeSpec(layers=32, hidden=2048, intermediate=5632, heads=16, kv_heads=16, vocab=2000, context=512)
# Two of its 48 layers: 128 experts each, 1.2 GB of dense weights a layer.
EXPERTS = ShapeSpec(
    layers=2, hidden=2048, intermediate=768, heads=32, kv_heads=4, head_dim=128, vocab=2000, context=512
)
ON_ARRIVAL = [name for name, scheme in SCHEMES.items() if scheme.apply]


def load_and_measure(ref: ModelRef, scheme: str) -> tuple[loader.LoadedModel, int]:
    """The model, and the most that was allocated on the device while it was loaded, bytes."""
    recipe = Recipe(model=ref, device="cuda:0", quantization=Quantization(scheme=scheme))
    machine = hardware.detect()
    for conflict in conflicts.find_conflicts(recipe, machine):
        pytest.skip(f"{conflict.field}: {conflict.reason}")
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    resolved = catalog.resolve(ref)
    loaded = loader.load(resolved, conflicts.resolve(recipe, machine), lambda *_: None)
    predicted = footprint.estimate(recipe, resolved, machine).weights_bytes
    assert loaded.weights_bytes == pytest.approx(predicted, rel=0.02)
    return loaded, torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("scheme", ON_ARRIVAL)
def test_a_shape_is_packed_as_it_is_drawn(scheme):
    loaded, peak = load_and_measure(ModelRef(source="shape", id="custom", shape=SIZES), scheme)
    print(f"{scheme}: packed {loaded.weights_bytes / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    assert loaded.effective.quantized_modules == 32 * 7
    assert peak < 1.3 * loaded.weights_bytes
    with torch.inference_mode():
        assert loaded.model(torch.tensor([[1, 2, 3]], device="cuda")).logits.isfinite().all()


@pytest.mark.parametrize("scheme", ON_ARRIVAL)
def test_experts_are_packed_as_they_are_drawn(scheme, monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "qwen3-30b-a3b", EXPERTS)
    loaded, peak = load_and_measure(ModelRef(source="shape", id="qwen3-30b-a3b"), scheme)
    print(f"{scheme}: packed {loaded.weights_bytes / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    assert loaded.effective.quantized_modules == 2 * (4 + 128 * 3)
    assert peak < 1.3 * loaded.weights_bytes
    with torch.inference_mode():
        assert loaded.model(torch.tensor([[1, 2, 3]], device="cuda")).logits.isfinite().all()


def test_the_instrument_sees_a_dense_model():
    loaded, peak = load_and_measure(ModelRef(source="shape", id="custom", shape=SIZES), "none")
    assert peak >= loaded.weights_bytes > 3e9


@pytest.mark.parametrize("library", ["bitsandbytes", "torchao"])
def test_a_checkpoint_that_comes_quantized_loads_on_the_device(library, tmp_path, monkeypatch):
    """Saved by its own library from a dense model on the device; the same logits after it was read back."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

    from tests.tiny_llama import build_tiny_llama

    configs = {
        "bitsandbytes": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
        "torchao": lambda: TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False)),
    }
    monkeypatch.setenv("MCP_MODEL_ROOTS", str(tmp_path))
    folder = build_tiny_llama(tmp_path / "tiny")
    saved = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=configs[library](), device_map="cuda:0"
    )
    (folder / "model.safetensors").unlink()
    saved.save_pretrained(folder)
    ref = ModelRef(source="folder", id=str(folder))
    machine = hardware.detect()
    recipe = conflicts.resolve(Recipe(model=ref, device="cuda:0"), machine)
    loaded = loader.load(catalog.resolve(ref), recipe, lambda *_: None)
    assert loaded.effective.scheme.startswith(f"checkpoint:{library}")
    assert loaded.effective.quantized_modules == 14
    ids = torch.tensor([[104, 101, 108]], device="cuda")
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).logits, saved(ids).logits)
