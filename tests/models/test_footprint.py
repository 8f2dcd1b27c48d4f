from __future__ import annotations

from dataclasses import replace

import pytest

from mcp_core.errors import RecipeError
from mcp_core.hardware import Device, Hardware
from mcp_core.models import footprint
from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.catalog import resolve
from mcp_core.models.footprint import estimate, resolve_max_context
from mcp_core.models.runtime_memory import IMPORTS_BYTES
from mcp_core.recipe import ModelRef, Recipe

GB = 10**9


def device(kind: str = "cpu", free: float = 100, total: float = 128) -> Device:
    name = "cpu" if kind == "cpu" else "cuda:0"
    return Device(
        id=name, kind=kind, name=kind, memory_total_bytes=int(total * GB), memory_free_bytes=int(free * GB)
    )


def machine(*devices: Device) -> Hardware:
    return Hardware(
        host="h",
        os="o",
        python="3",
        cpu="c",
        cores=4,
        cpu_flags=(),
        devices=devices or (device(),),
        torch_cuda="13.0",
        libraries={},
    )


def recipe(name: str = "llama-2-7b", **changes: object) -> Recipe:
    base = Recipe(model=ModelRef(source="shape", id=name), device="cpu", threads=1)
    return base.replace({key.replace("__", "."): value for key, value in changes.items()})


def predict(asked: Recipe, hardware: Hardware | None = None) -> footprint.Footprint:
    return estimate(asked, resolve(asked.model), hardware or machine())


def test_llama_2_7b_in_numbers():
    predicted = predict(recipe())
    assert predicted.weights_bytes == 6_738_415_616 * 2
    assert predicted.kv_bytes_per_token == 2 * 32 * 4096 * 2  # half a MiB a token, as published
    assert predicted.context_tokens == 4096
    assert predicted.kv_bytes == 4096 * 2 * 32 * 4096 * 2
    assert predicted.fits
    assert (predicted.device, predicted.free_bytes, predicted.total_bytes) == ("cpu", 100 * GB, 128 * GB)


def test_parts_add_up_to_the_peak():
    predicted = predict(recipe(quantization__scheme="bnb-nf4", kv__kind="quantized-fp8"))
    assert sum(size for _, size in predicted.parts) == predicted.peak_bytes
    assert predicted.peak_bytes == (
        predicted.weights_bytes + predicted.kv_bytes + predicted.activation_bytes + predicted.overhead_bytes
    )
    assert all(size > 0 for _, size in predicted.parts)


def test_what_does_not_fit_says_so_with_the_numbers():
    predicted = predict(recipe(), machine(device(free=11.2, total=23.5)))
    assert not predicted.fits
    assert "Does not fit: needs 1" in predicted.reason
    assert "11.2 GB free of 23.5 GB on cpu" in predicted.reason


def test_the_larger_of_loading_and_serving_decides():
    served = predict(recipe())
    imports = IMPORTS_BYTES
    assert served.imports_bytes == imports
    needed = max(served.load_peak_bytes, served.peak_bytes + imports)
    assert predict(recipe(), machine(device(free=(needed + 1) / GB))).fits
    assert not predict(recipe(), machine(device(free=(needed - 1000) / GB))).fits
    short = predict(recipe(kv__max_context=16, quantization__scheme="bnb-nf4"))
    assert short.load_peak_bytes > short.peak_bytes
    assert "to load" in short.reason


def test_quantized_weights_take_less_and_fit_where_dense_do_not():
    small = machine(device(free=9))
    dense = predict(recipe(kv__max_context=512), small)
    nf4 = predict(recipe(kv__max_context=512, quantization__scheme="bnb-nf4"), small)
    assert (dense.fits, nf4.fits) == (False, True)
    assert nf4.weights_bytes < dense.weights_bytes / 3


def test_bytes_of_a_token_follow_dtype_and_kind():
    def per_token(**changes: object) -> int:
        return predict(recipe(**changes)).kv_bytes_per_token

    assert per_token(dtype="fp32") == 2 * per_token(dtype="bf16")
    fp8 = per_token(dtype="fp32", kv__kind="quantized-fp8")
    assert fp8 == per_token(dtype="fp32") // 4 + 2 * 32 * 32 * 2  # a scale of two bytes for each head
    assert fp8 == per_token(kv__kind="quantized-fp8", batching__mode="continuous")
    assert per_token(kv__kind="static") == per_token()


def test_smollm_takes_46080_bytes_a_token_in_fp32():
    predicted = predict(Recipe(dtype="fp32", device="cpu", threads=1))
    assert predicted.kv_bytes_per_token == 46_080  # measured, quantization-and-caches.md
    assert predicted.prepare_bytes > 538_060_032
    assert predicted.download_bytes == 0


def test_a_pool_of_fp8_pages_holds_nearly_twice_the_tokens():
    both = machine(device(), device("cuda", 40, 80))
    pools = [
        predict(recipe(device="cuda:0", dtype="bf16", batching__mode="continuous", **kind), both)
        for kind in ({}, {"kv__kind": "quantized-fp8"})
    ]
    dense, fp8 = (pool.kv_bytes / pool.kv_bytes_per_token for pool in pools)
    assert fp8 / dense == pytest.approx(2 / (1 + 2 / 128), rel=0.01)
    assert pools[1].kv_bytes == pytest.approx(pools[0].kv_bytes, rel=0.01)


def test_recorded_steps_keep_their_logits_on_a_gpu_and_graphs_have_memory_of_their_own() -> None:
    both, changes = machine(device(), device("cuda", 40, 80)), {"batching__mode": "continuous", "dtype": "bf16"}

    def peak(compile_: str, most: int) -> int:
        asked = recipe(
            device="cuda:0", compile=compile_, batching__max_requests=most, batching__kv_blocks=64, **changes
        )
        return predict(asked, both).peak_bytes

    vocab = 32_000
    one, four = 300 * 10**6 + (1 + 1) * vocab * 2, 300 * 10**6 + (1 + 2 + 4 + 1 + 4) * vocab * 2
    assert peak("graphs", 1) - peak("off", 1) == one
    assert peak("graphs", 4) - peak("off", 4) == four
    assert peak("compiled", 8) - peak("graphs", 4) == peak("off", 8) - peak("off", 4) + (8 + 4) * vocab * 2


def test_offloaded_keeps_two_layers_on_the_device():
    both = machine(device(), device("cuda", 70, 80))
    on_device = predict(recipe(device="cuda:0"), both)
    offloaded = predict(recipe(device="cuda:0", kv__kind="offloaded"), both)
    assert offloaded.kv_bytes == on_device.kv_bytes * 2 // 32


def test_eager_attention_holds_scores_that_sdpa_does_not():
    chunk, context, heads = 256, 4096, 32
    eager, sdpa = predict(recipe(attention="eager")), predict(recipe())
    assert eager.activation_bytes - sdpa.activation_bytes >= heads * chunk * context * 4


def test_preparing_a_gguf_is_part_of_loading(tmp_path):
    asked = Recipe(device="cpu", threads=1)
    resolved = resolve(asked.model)
    before = estimate(asked, resolved, machine())
    prepared = estimate(asked, replace(resolved, folder=tmp_path, prepare_bytes=0), machine())
    assert before.load_peak_bytes > prepared.load_peak_bytes + 300e6
    # 1,153 MiB measured from start to prepared
    assert before.load_peak_bytes / 2**20 == pytest.approx(1153, rel=0.1)


def test_preparing_happens_on_the_host_also_for_a_gpu():
    asked = Recipe(device="cuda:0", threads=1)
    predicted = estimate(asked, resolve(asked.model), machine(device(free=0.8), device("cuda", 70, 80)))
    assert not predicted.fits
    assert "to prepare" in predicted.reason
    assert "on cpu" in predicted.reason


def test_measured_peaks_are_met():
    """Serving peak minus imports of SmolLM2-135M, MB, one thread, prompt as long as the context."""
    measured = [
        ({"dtype": "bf16"}, 400, 347),
        ({"dtype": "bf16"}, 4096, 463),
        ({"dtype": "bf16", "kv.kind": "quantized-fp8"}, 4096, 420),
        ({"dtype": "fp32"}, 400, 621),
        ({"dtype": "fp32"}, 1516, 703),
        ({"dtype": "fp32"}, 2048, 739),
        ({"dtype": "fp32", "kv.kind": "static"}, 4096, 797),
        ({"dtype": "bf16", "kv.kind": "static"}, 1516, 391),
        ({"dtype": "bf16", "kv.kind": "off"}, 400, 379),
        ({"dtype": "bf16", "attention": "eager"}, 4096, 591),
        ({"dtype": "bf16", "compile": "compiled", "batching.mode": "continuous"}, 400, 537),  # 483 and 593
        ({"dtype": "bf16", "compile": "compiled"}, 400, 441),  # found from an earlier start
        ({"dtype": "bf16", "compile": "compiled"}, 400, 503),  # compiled at this one
        ({"dtype": "fp32", "compile": "compiled"}, 400, 732),
        ({"dtype": "fp32", "compile": "compiled"}, 400, 796),
        ({"dtype": "bf16", "quantization.scheme": "bnb-nf4"}, 400, 239),
        ({"dtype": "bf16", "quantization.scheme": "bnb-int8"}, 400, 309),
        ({"dtype": "bf16", "quantization.scheme": "torchao-int8-weight-only"}, 400, 258),
        ({"dtype": "bf16", "quantization.scheme": "torchao-int4-weight-only"}, 400, 201),
        ({"dtype": "bf16", "quantization.scheme": "torchao-int8-dynamic"}, 400, 275),
        ({"dtype": "bf16", "quantization.scheme": "torchao-int8-dynamic"}, 96, 246),
        ({"dtype": "bf16", "quantization.scheme": "torchao-int8-static"}, 400, 277),
        ({"dtype": "bf16", "quantization.scheme": "torchao-int8-static"}, 96, 281),
        ({"dtype": "bf16", "quantization.scheme": "torchao-fp8-weight-only"}, 400, 302),
        ({"dtype": "bf16", "quantization.scheme": "torchao-fp8-weight-only"}, 96, 318),
        ({"dtype": "fp32", "quantization.scheme": "torchao-fp8-weight-only"}, 96, 297),
        ({"dtype": "fp32", "quantization.scheme": "classic-dynamic"}, 400, 339),
    ]
    for changes, context, peak in measured:
        asked = Recipe(device="cpu", threads=1).replace(changes | {"kv.max_context": context})
        assert predict(asked).peak_bytes / 1e6 == pytest.approx(peak, rel=0.1), changes


def test_context_is_the_models_own_up_to_4096():
    def context(name: str, **changes: object) -> int:
        asked = recipe(name, **changes)
        return resolve_max_context(asked, resolve(asked.model).architecture)

    assert context("llama-2-7b") == 4096
    assert context("llama-3.1-8b") == 4096
    assert context("llama-3.1-8b", kv__max_context=100_000) == 100_000
    assert context("llama-3.1-8b", kv__max_context=64) == 64
    with pytest.raises(RecipeError, match=r"kv\.max_context: 5,000 tokens asked, the model's context is 4,096"):
        context("llama-2-7b", kv__max_context=5000)


def test_short_context_of_a_small_model():
    architecture = replace(resolve(recipe().model).architecture, context=100)
    resolved = ResolvedModel(recipe().model, "short", architecture)
    assert estimate(recipe(), resolved, machine()).context_tokens == 100


def test_device_that_is_not_there():
    with pytest.raises(RecipeError, match="no cuda:3") as caught:
        predict(recipe(device="cuda:3"))
    assert "cpu" in caught.value.hint
