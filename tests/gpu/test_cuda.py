"""What only an NVIDIA device can show. `pytest -m gpu`; every test needs cuda:0."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mcp_core.generation import GenerationRequest, Sampling
from mcp_core.hardware import detect
from mcp_core.inference.decoding import Decoder
from mcp_core.inference.kv_cache import cache_factory
from mcp_core.models import catalog, loader
from mcp_core.monitoring.nvml import read_devices
from mcp_core.recipe import Recipe

pytestmark = pytest.mark.gpu

SHAPE = {
    "layers": 4,
    "hidden": 512,
    "intermediate": 1024,
    "heads": 8,
    "kv_heads": 4,
    "vocab": 2000,
    "context": 1024,
}
PROMPT = tuple(range(300, 400))


def load(**changes):
    base = {"model": {"source": "shape", "id": "custom", "shape": SHAPE}, "device": "cuda:0", "dtype": "fp32"}
    recipe = Recipe.from_dict(base).replace({key.replace("__", "."): value for key, value in changes.items()})
    return loader.load(catalog.resolve(recipe.model), recipe, lambda *_: None), recipe


def decode(loaded, kind="dynamic", tokens=32):
    decoder = Decoder(loaded.model, frozenset(), loaded.max_context)
    request = GenerationRequest("r", PROMPT, tokens, Sampling(temperature=0), ignore_eos=True)
    cache = cache_factory(kind, loaded.model.config, loaded.max_context)()
    return [step.token for step in decoder.steps(request, cache, lambda: False)]


def test_nvml_lists_the_device_that_torch_uses():
    device = detect().device("cuda:0")
    assert device is not None
    assert device.name == torch.cuda.get_device_name(0)
    assert device.compute_capability == torch.cuda.get_device_capability(0)


def test_nvml_sees_a_known_allocation():
    before = read_devices()[1][0].memory_used_bytes
    code = (
        "import torch, sys; x = torch.ones(2**30, dtype=torch.uint8, device='cuda'); torch.cuda.synchronize();"
        "print('up', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        child.stdout.readline()
        reading = read_devices()[1][0]
        child.stdin.close()
    assert reading.memory_used_bytes - before == pytest.approx(2**30 + 500 * 2**20, abs=450 * 2**20)
    if child.pid in reading.process_memory_bytes:  # containers hide processes
        assert reading.process_memory_bytes[child.pid] >= 2**30


@pytest.mark.parametrize("kind", ["dynamic", "static", "offloaded"])
def test_greedy_equals_generate_in_fp32(kind):
    loaded, _ = load()
    ids = torch.tensor([PROMPT], device="cuda:0")
    expected = loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=32,
        min_new_tokens=32,
        do_sample=False,
        pad_token_id=0,
    )
    assert decode(loaded, kind) == expected[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [("bnb-int8", 8), ("bnb-nf4", 4), ("bnb-fp4", 4), ("torchao-int8-weight-only", 8)],
)
def test_a_quantized_shape_is_never_dense_on_the_device(scheme, bits):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    big = SHAPE | {"layers": 24, "hidden": 2048, "intermediate": 5504, "heads": 16, "kv_heads": 16}
    loaded, _ = load(dtype="bf16", model__shape=big, quantization__scheme=scheme)
    linear = sum(t.parameters for t in loaded.resolved.architecture.tensors if "proj" in t.name)
    peak = torch.cuda.max_memory_allocated() - before
    assert loaded.weights_bytes < linear * 2 * bits / 16 * 1.25
    assert peak < linear * 2 * 0.75, "the peak is near the dense model's size"
    assert len(decode(loaded)) == 32


def test_fp8_cache_and_static_cache_decode():
    loaded, _ = load(dtype="bf16")
    for kind in ("quantized-fp8", "static"):
        assert len(decode(loaded, kind)) == 32
