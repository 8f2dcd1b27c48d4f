from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, MistralConfig

from mcp_core.errors import RecipeError
from mcp_core.inference.fp8 import dequantized, quantized
from mcp_core.inference.kv_cache import cache_factory, extend


def run(model, cache, ids, chunk):
    with torch.inference_mode():
        return torch.cat(
            [extend(model, ids[:, at : at + chunk], cache) for at in range(0, ids.shape[1], chunk)], dim=1
        )


def banded(model, ids, window):
    """Logits by one pass over everything with an explicit mask: each token sees itself and window - 1 before it."""
    distance = torch.arange(ids.shape[1])[:, None] - torch.arange(ids.shape[1])
    seen = ((distance >= 0) & (distance < window))[None, None]
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        return model(ids, attention_mask=mask, use_cache=False).logits


@pytest.fixture
def ids():
    return torch.randint(3, 320, (1, 200), generator=torch.Generator().manual_seed(3))


def test_fp8_takes_a_byte_a_value_and_two_for_a_scale(model, ids):
    cache = cache_factory("quantized-fp8", model.config, 512)()
    run(model, cache, ids, 100)
    stored = sum(
        tensor.untyped_storage().nbytes()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values, layer.key_scales, layer.value_scales)
    )
    assert stored == 2 * 3 * 2 * (16 + 2) * 200  # K and V, layers, kv_heads, head_dim and scale, tokens
    assert cache.get_seq_length() == 200


def test_fp8_means_the_same_in_any_chunking(model, ids):
    """No token's scale depends on another's: what is kept of a token is known as soon as it is there."""
    caches = [cache_factory("quantized-fp8", model.config, 512)() for _ in range(3)]
    whole, chunked, single = (
        run(model, cache, ids, chunk) for cache, chunk in zip(caches, (200, 50, 1), strict=True)
    )
    assert ((whole - chunked).abs().mean(), (whole - single).abs().mean()) < (0.01, 0.01)
    assert torch.equal(whole.argmax(-1)[0, :20], single.argmax(-1)[0, :20])


@pytest.mark.parametrize("chunk", [1, 50, 100])
def test_fp8_is_lossy_but_close_for_any_chunking(model, ids, chunk):
    exact = run(model, cache_factory("dynamic", model.config, 512)(), ids, chunk).log_softmax(-1)
    lossy = run(model, cache_factory("quantized-fp8", model.config, 512)(), ids, chunk).log_softmax(-1)
    kl = (exact.exp() * (exact - lossy)).sum(-1).mean()
    assert 0 < kl < 0.2
    assert torch.isfinite(lossy).all()


@pytest.mark.parametrize("size", [1e-8, 1e-3, 1.0, 1e6])
def test_fp8_holds_what_it_is_given_to_four_bits_of_mantissa(size):
    values = size * torch.randn(5, 2, 7, 64, generator=torch.Generator().manual_seed(2))
    values[0, 0, 0] = 0
    stored, scales = quantized(values)
    back = dequantized(stored, scales, torch.float32)
    assert (stored.dtype, scales.shape) == (torch.uint8, (5, 2, 7))
    largest = values.abs().amax(-1, keepdim=True)
    finest = largest / 448 * 2**-9  # e4m3's own smallest step
    smallest_scale = 2.0**-14 * 2**-9
    assert ((back - values).abs() <= values.abs() / 16 + finest + smallest_scale).all()
    assert (back.sign() * values >= 0).all()


def test_fp8_beyond_what_a_scale_holds_saturates():
    back = dequantized(*quantized(torch.full((1, 1, 1, 16), 1e30)), torch.float32)
    assert torch.isfinite(back).all()


def test_static_cache_is_allocated_whole_and_reused(model, ids):
    new_cache = cache_factory("static", model.config, 256)
    cache = new_cache()
    first = run(model, cache, ids, 100)
    assert cache.layers[0].keys.shape == (1, 2, 256, 16)
    again = new_cache()
    assert again is cache
    assert torch.equal(run(model, again, ids, 100), first)


@pytest.fixture(params=["sdpa", "eager"])
def attention(model, request):
    model.set_attn_implementation(request.param)
    yield request.param
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("chunk", [1, 7, 30, 64, 200])
def test_sliding_equals_a_banded_mask(model, ids, attention, chunk):
    cache = cache_factory("sliding", model.config, 512, window=48)()
    torch.testing.assert_close(run(model, cache, ids, chunk), banded(model, ids, 48), rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == 200
    assert cache.layers[0].keys.shape[-2] == 47


def test_sliding_is_exact_within_the_window_and_lossy_beyond(model, ids):
    exact = run(model, cache_factory("dynamic", model.config, 512)(), ids, 40)
    within = run(model, cache_factory("sliding", model.config, 512, window=200)(), ids, 40)
    assert torch.equal(within, exact)
    beyond = run(model, cache_factory("sliding", model.config, 512, window=199)(), ids, 40)
    assert torch.equal(beyond[:, :160], exact[:, :160])
    assert not torch.allclose(beyond[:, -1], exact[:, -1])


def test_off_computes_everything_again(model, ids):
    exact = run(model, cache_factory("dynamic", model.config, 512)(), ids, 50)
    lengths = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    torch.testing.assert_close(run(model, cache_factory("off", model.config, 512)(), ids, 50), exact)
    hook.remove()
    assert lengths == [50, 100, 150, 200]


@pytest.mark.parametrize("kind", ["sliding", "quantized-fp8", "quantized-quanto", "quantized-hqq"])
@pytest.mark.parametrize("config", [Gemma2Config(), MistralConfig(sliding_window=4096)])
def test_models_with_windows_of_their_own_are_refused(kind, config):
    with pytest.raises(RecipeError, match="a window or a state of their own") as caught:
        cache_factory(kind, config, 512)
    assert "dynamic" in caught.value.hint
