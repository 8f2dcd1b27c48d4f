from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, MistralConfig

from mcp_core.errors import RecipeError
from mcp_core.inference.kv_cache import FP8_CALIBRATION_TOKENS, cache_factory, extend


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


def test_fp8_stays_dense_until_calibrated(model, ids):
    cache = cache_factory("quantized-fp8", model.config, 512)()
    exact = cache_factory("dynamic", model.config, 512)()
    short = ids[:, : FP8_CALIBRATION_TOKENS - 1]
    assert torch.equal(run(model, cache, short, 7), run(model, exact, short, 7))
    assert cache._dense is not None
    run(model, cache, ids[:, FP8_CALIBRATION_TOKENS - 1 : FP8_CALIBRATION_TOKENS], 1)
    assert cache._dense is None
    assert cache.get_seq_length() == FP8_CALIBRATION_TOKENS


def test_fp8_stores_a_quarter_of_fp32(model, ids):
    cache = cache_factory("quantized-fp8", model.config, 512)()
    run(model, cache, ids, 100)
    stored = sum(
        tensor.untyped_storage().nbytes()
        for layer in cache.layers
        for tensor in (layer._quantized_keys[0], layer._quantized_values[0])
    )
    assert stored == 2 * 3 * 2 * 16 * 200  # K and V, layers, kv_heads, head_dim, tokens, one byte each
    assert all(layer.keys is None or layer.keys.numel() == 0 for layer in cache.layers)


@pytest.mark.parametrize("chunk", [1, 50, 100])
def test_fp8_is_lossy_but_close_for_any_chunking(model, ids, chunk):
    exact = run(model, cache_factory("dynamic", model.config, 512)(), ids, chunk).log_softmax(-1)
    lossy = run(model, cache_factory("quantized-fp8", model.config, 512)(), ids, chunk).log_softmax(-1)
    kl = (exact.exp() * (exact - lossy)).sum(-1).mean()
    assert 0 < kl < 0.5
    assert torch.isfinite(lossy).all()


def test_fp8_saturates_beyond_the_calibrated_range(model):
    layer = cache_factory("quantized-fp8", model.config, 512)().layers[0]
    small, huge = torch.ones(1, 2, 64, 16), torch.full((1, 2, 1, 16), 1e6)
    layer.update(small, small)
    keys, _ = layer.update(huge, huge)
    assert torch.isfinite(keys).all()
    assert float(keys[0, 0, -1, 0]) == pytest.approx(1.0, rel=0.1)


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
