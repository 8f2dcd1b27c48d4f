"""Against what was measured with xllamacpp 2026.10 on SmolLM2-135M; bytes beside a process after its imports."""

from __future__ import annotations

import pytest

from mcp_core import llama_cpp
from mcp_core.hardware import Device, Hardware
from mcp_core.models import catalog
from mcp_core.models.footprint import Predictor
from mcp_core.models.served_load import ServedLoad
from mcp_core.recipe import Recipe

MB = 10**6
# Tokenizer and HTTP of the worker, which the measured process lacked.
WORKER_BYTES = 16 * MB


def predictor(**changes: object) -> Predictor:
    recipe = llama_cpp.with_engine(Recipe(), "llama.cpp").replace(changes)
    cpu = Device(id="cpu", kind="cpu", name="CPU", memory_total_bytes=20_000 * MB, memory_free_bytes=20_000 * MB)
    hardware = Hardware(
        host="t", os="Linux", python="3.11", cpu="CPU", cores=2, cpu_flags=(), devices=(cpu,), libraries={}
    )
    return Predictor(recipe, catalog.resolve(recipe.model), hardware)


@pytest.mark.parametrize(
    ("attention", "slots", "context", "prompt", "measured_mb"),
    [
        ("sdpa", 1, 1024, 900, 174.2),
        ("sdpa", 1, 4096, 3900, 248.3),
        ("sdpa", 1, 8192, 4000, 342.7),
        ("sdpa", 4, 1024, 900, 265.1),
        ("sdpa", 16, 1024, 200, 628.9),
        ("sdpa", 1, 1024, 64, 160.3),
        ("eager", 1, 2048, 1500, 233),
        ("eager", 1, 4096, 3500, 329),
        ("eager", 4, 2048, 1500, 394),
        ("eager", 1, 4096, 300, 245),
    ],
)
def test_the_peak_is_predicted_within_a_tenth(
    attention: str, slots: int, context: int, prompt: int, measured_mb: float
) -> None:
    batching = {"batching.mode": "continuous", "batching.max_requests": slots} if slots > 1 else {}
    found = predictor(**{"attention": attention, "kv.max_context": context, **batching}).at(
        ServedLoad(prompt + 8, slots, prompt, context)
    )
    assert found.peak_bytes - WORKER_BYTES == pytest.approx(measured_mb * MB, rel=0.1)


def test_weights_are_the_files_and_nothing_is_prepared() -> None:
    found = predictor().at()
    assert found.weights_bytes == 96_576_768
    assert found.prepare_bytes == 0
    assert found.load_peak_bytes < 400 * MB
    assert found.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2
