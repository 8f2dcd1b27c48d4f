"""Static int8 on an NVIDIA device: calibrated there; what it weighs, loses and takes to load. `pytest -m gpu`."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path

import pytest
import torch

from mcp_core.models import catalog, loader
from mcp_core.models.loaded import LoadedModel
from mcp_core.models.packing import pack
from mcp_core.recipe import Calibration, ModelRef, Quantization, Recipe, SchemeName, ShapeSpec

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

SPEC = ShapeSpec(layers=2, hidden=576, intermediate=1536, heads=9, kv_heads=3, vocab=2000)
SMALL = ModelRef(source="shape", id="custom", shape=SPEC)
LLAMA_7B = ModelRef(source="shape", id="llama-2-7b")
SCHEMES: tuple[SchemeName, ...] = ("torchao-int8-static", "torchao-int8-static-smoothquant")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_HOME", str(tmp_path))


def load(ref: ModelRef, scheme: SchemeName, **wanted: int) -> LoadedModel:
    options = Quantization(scheme=scheme, calibration=Calibration(**wanted) if wanted else Calibration())
    recipe = Recipe(model=ref, device="cuda:0", threads=1, dtype="bf16", quantization=options)
    return loader.load(catalog.resolve(ref), recipe, lambda *_: None)


def rotary_bytes(model: torch.nn.Module) -> int:
    return sum(buffer.nbytes for name, buffer in model.named_buffers() if "inv_freq" in name)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_weighs_what_was_predicted_and_computes_at_every_length(scheme: SchemeName) -> None:
    dense, packed = load(SMALL, "none").model, load(SMALL, scheme)
    predicted = pack(packed.resolved.architecture, "bf16", Quantization(scheme=scheme), "cuda").total_bytes
    assert packed.weights_bytes - rotary_bytes(packed.model) == predicted
    assert packed.effective.quantized_modules == 14
    for tokens in (1, 16, 17, 200):  # torch's int8 product has 17 rows or more
        ids = torch.arange(1, tokens + 1, device="cuda:0")[None]
        with torch.inference_mode():
            exact, found = dense(ids).logits.float(), packed.model(ids).logits.float()
        assert 0.001 < float((found - exact).norm() / exact.norm()) < 0.2


def test_a_second_load_reuses_ranges_and_alpha() -> None:
    first, again = (load(SMALL, SCHEMES[1]).effective.calibration for _ in range(2))
    assert first is not None
    assert again is not None
    assert (first.reused, again.reused) == (False, True)
    assert first.alpha_search == again.alpha_search
    assert first.random_tokens


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_7b_shape_is_never_held_twice(scheme: SchemeName) -> None:
    gc.collect()  # models of tests before, which are tied to themselves
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    started_s = time.monotonic()
    loaded = load(LLAMA_7B, scheme, samples=8, tokens=256)
    load_s, peak = time.monotonic() - started_s, torch.cuda.max_memory_allocated()
    told = loaded.effective.calibration
    assert told is not None
    ids = torch.arange(1, 129, device="cuda:0")[None]
    with torch.inference_mode():
        loaded.model(ids)
        torch.cuda.synchronize()
        begun_s = time.monotonic()
        loaded.model(ids)
        torch.cuda.synchronize()
    figures = {
        "scheme": scheme,
        "weights": loaded.weights_bytes,
        "load_peak": peak,
        "load_s": round(load_s, 1),
        "calibration_s": round(told.seconds, 1),
        "alphas": [[each.alpha, round(each.kl, 4)] for each in told.alpha_search],
        "prefill_128_ms": round(1000 * (time.monotonic() - begun_s), 1),
    }
    print(json.dumps(figures))
    dense = 13.48e9
    assert loaded.weights_bytes < 0.53 * dense
    assert peak < dense + 2e9
