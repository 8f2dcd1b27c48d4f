"""KV kinds, attention kernels and torch's switches where only an NVIDIA device can show them. `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from mcp_core.generation import GenerationRequest, Sampling
from mcp_core.inference.decoding import Decoder
from mcp_core.inference.engine import Engine
from mcp_core.inference.kv_cache import cache_factory, extend
from mcp_core.memory.switches import switches_in_force, switches_on
from mcp_core.models import catalog, loader
from mcp_core.recipe import Recipe, Switches

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda:0")
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


def load(**changes: object):
    base = {"model": {"source": "shape", "id": "custom", "shape": SHAPE}, "device": "cuda:0", "dtype": "fp32"}
    recipe = Recipe.from_dict(base).replace({key.replace("__", "."): value for key, value in changes.items()})
    return loader.load(catalog.resolve(recipe.model), recipe, lambda *_: None), recipe


def decode(loaded, kind: str, tokens: int = 32) -> list[int | None]:
    decoder = Decoder(loaded.model, frozenset(), loaded.max_context)
    request = GenerationRequest("r", PROMPT, tokens, Sampling(temperature=0), ignore_eos=True)
    cache = cache_factory(kind, loaded.model.config, loaded.max_context)()
    return [step.token for step in decoder.steps(request, cache, lambda: False)]


def test_lossless_caches_give_the_tokens_of_generate_in_fp32() -> None:
    loaded, _ = load()
    ids = torch.tensor([PROMPT], device=CUDA)
    out = loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=32,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    expected = out[0, len(PROMPT) :].tolist()
    for kind in ("dynamic", "static", "sliding", "offloaded", "off"):
        assert decode(loaded, kind) == expected, kind


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_hqq_and_quanto_pack_keys_and_values(bits: int) -> None:
    loaded, _ = load()
    ids = torch.tensor([PROMPT * 4], device=CUDA)
    with torch.inference_mode():
        exact = extend(loaded.model, ids, cache_factory("dynamic", loaded.model.config, 1024)()).log_softmax(-1)
    kl = {}
    for kind, module in (("quantized-hqq", "hqq"), ("quantized-quanto", "optimum.quanto")):
        pytest.importorskip(module)
        if (kind, bits) == ("quantized-quanto", 8):
            continue
        cache = cache_factory(kind, loaded.model.config, 1024, bits=bits)()
        with torch.inference_mode():
            parts = [extend(loaded.model, ids[:, at : at + 100], cache) for at in range(0, 400, 100)]
        packed = torch.cat(parts, dim=1).log_softmax(-1)
        kl[kind] = float((exact.exp() * (exact - packed)).sum(-1).mean())
    print(bits, kl)
    assert all(0 < each < 1 for each in kl.values())


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_kernel_that_ran_is_read_back_in_bf16(kind: str) -> None:
    loaded, recipe = load(dtype="bf16", kv__kind=kind)
    backend = Engine(loaded, recipe, lambda _: None).warm_up()
    print(kind, backend)
    assert backend is not None
    assert {word for word in ("flash", "cudnn", "mem-efficient", "math") if word in backend}


def test_tf32_keeps_ten_bits_of_mantissa_and_only_inside() -> None:
    a, b = (torch.randn(512, 512, device=CUDA, generator=torch.Generator(CUDA).manual_seed(at)) for at in (0, 1))
    exact = (a.double() @ b.double()).float()
    plain = (a @ b - exact).abs().max()
    with switches_on(Switches(tf32=True), CUDA):
        assert switches_in_force(CUDA) == ("tf32",)
        coarse = (a @ b - exact).abs().max()
    assert switches_in_force(CUDA) == ()
    assert coarse > 20 * plain


@pytest.mark.parametrize("kind", ["dynamic", "offloaded", "sliding", "off"])
def test_autocast_goes_with_the_caches_that_conflicts_allow(kind: str) -> None:
    loaded, _ = load(switches__autocast="bf16")
    assert loaded.effective.switches == ("autocast bf16",)
    assert len(decode(loaded, kind)) == 32
