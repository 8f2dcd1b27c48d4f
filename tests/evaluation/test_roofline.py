"""Roofline: hand-computed cases, most of them from facts/gpu.md."""

from __future__ import annotations

import pytest

from mcp_core.ceilings import Ceilings
from mcp_core.evaluation.roofline import (
    Point,
    Work,
    decode_work,
    prefill_work,
    product_of,
    roofline_of,
    sequences_of,
)
from mcp_core.hardware import Device, Hardware
from mcp_core.models.catalog import resolve
from mcp_core.models.footprint import Predictor
from mcp_core.recipe import Recipe
from mcp_core.results import EngineWork, Measurement, Quantiles, Run, now
from mcp_core.workload import Workload

GB = 10**9
H100 = Ceilings.model_validate(
    {
        "device": "cuda:0",
        "device_name": "NVIDIA H100",
        "torch": "2.11.0",
        "created": "2026-11-23T00:00:00Z",
        "read_bytes_s": 2.9e12,
        "copy_bytes_s": 2.99e12,
        "matmul_flop_s": {"bf16": 781e12},
        "op_us": 5.0,
    }
)
CPU = Device(id="cpu", kind="cpu", name="CPU", memory_total_bytes=64 * GB, memory_free_bytes=60 * GB)
GPU = Device(id="cuda:0", kind="cuda", name="NVIDIA H100", memory_total_bytes=80 * GB, memory_free_bytes=79 * GB)
MACHINE = Hardware(
    host="h",
    os="Linux",
    python="3.11",
    cpu="CPU",
    cores=8,
    cpu_flags=(),
    devices=(CPU, GPU),
    torch_cuda="13.0",
    libraries={"torch": "2.11.0", "torchao": "0.18.0", "bitsandbytes": "0.50.2"},
)
TOY = {
    "layers": 2,
    "hidden": 8,
    "intermediate": 16,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 2,
    "vocab": 300,
    "context": 64,
}


def predictor(shape: str | dict, **changes) -> Predictor:
    model = {"source": "shape", "id": shape}
    if isinstance(shape, dict):
        model = {"source": "shape", "id": "custom", "shape": shape}
    recipe = Recipe(device="cuda:0").replace(
        {"model": model} | {key.replace("__", "."): changes[key] for key in changes}
    )
    return Predictor(recipe, resolve(recipe.model), MACHINE)


@pytest.mark.parametrize(
    ("scheme", "gigabytes", "floor_ms"),
    [("none", 13.2, 4.41), ("torchao-int8-weight-only", 6.8, 2.27), ("torchao-int4-weight-only", 3.8, 1.26)],
)
def test_the_floor_of_a_7b_decode_step_as_in_the_facts(scheme, gigabytes, floor_ms):
    """facts/gpu.md: all weights but the embedding table, over 2.99 TB/s. Its int4 row left the scales out."""
    work = decode_work(predictor("llama-2-7b", quantization__scheme=scheme), 1)
    point = Point(Work(work.flops, work.weights_bytes, 0.0), None, H100.bandwidth_bytes_s)
    tolerance = 0.05 if "int4" in scheme else 0.01
    assert work.weights_bytes / 1e9 == pytest.approx(gigabytes, rel=tolerance)
    assert point.floor_ms == pytest.approx(floor_ms, rel=tolerance)


def test_keys_and_values_of_a_7b_sequence():
    """2 x 32 layers x 32 heads x 128 x 2 bytes = 524,288 bytes a token; four sequences of 1,000 tokens."""
    work = decode_work(predictor("llama-2-7b"), 1000, 4)
    assert work.kv_bytes == 4 * 1000 * 524_288
    assert work.weights_bytes == decode_work(predictor("llama-2-7b"), 1000, 1).weights_bytes  # read once a step
    assert decode_work(predictor("llama-2-7b", kv__kind="quantized-fp8"), 1000, 4).kv_bytes == 4 * 1000 * 266_240
    assert decode_work(predictor("llama-2-7b", kv__kind="off"), 1000).kv_bytes == 0


def test_flops_of_a_toy_by_hand():
    """A layer: q 8x8, k and v 8x4, o 8x8, three of 8x16 = 576 weights; two layers; output 300x8."""
    toy = predictor(TOY)
    linear, output = 2 * 576, 300 * 8
    # 10 tokens kept by 2 layers: scores and values are 2 x 2 x (4 heads x 2) FLOPs each.
    attention = 10 * 2 * 2 * 2 * 8
    work = decode_work(toy, 10, 3)
    assert work.flops == 3 * (2 * (linear + output) + attention)
    # Read: both layers and the output with bf16's 2 bytes, norms of 8 (two a layer and the last), no embedding.
    assert work.weights_bytes == 2 * (linear + output + 5 * 8)
    # A prompt of 10: every token attends to 5 on average; the output layer sees one token.
    assert prefill_work(toy, 10).flops == 10 * (2 * linear + attention / 2) + 2 * output


def test_a_tied_table_is_read_as_output_layer():
    tied, apart = predictor(TOY | {"tied": True}), predictor(TOY)
    assert decode_work(tied, 1) == decode_work(apart, 1)


def test_a_prompt_reads_the_weights_once_a_chunk():
    short, long = (prefill_work(predictor("llama-2-7b"), tokens) for tokens in (2048, 4096))
    assert long.weights_bytes == 2 * short.weights_bytes  # 2,048 tokens a chunk on CUDA
    cached = prefill_work(predictor("llama-2-7b"), 1024, 64)
    assert cached.flops < prefill_work(predictor("llama-2-7b"), 1024).flops / 10


def test_a_mixture_reads_the_chosen_experts():
    """128 experts, 8 chosen: one token reads 1/16 of them, 32 tokens 1 - (1 - 1/16)^32 = 87 %."""
    one = decode_work(predictor("qwen3-30b-a3b"), 1, 1)
    many = decode_work(predictor("qwen3-30b-a3b"), 1, 32)
    experts = 48 * 128 * 3 * 768 * 2048 * 2
    rest = one.weights_bytes - experts / 16
    assert many.weights_bytes == pytest.approx(rest + experts * (1 - (15 / 16) ** 32))
    assert one.flops == pytest.approx(2 * 3.3e9, rel=0.15)  # "A3B": three billion work on a token


def test_a_sliding_cache_keeps_its_window():
    slid = decode_work(predictor("llama-2-7b", kv__kind="sliding", kv__window=64), 1000)
    assert slid.kv_bytes == 64 * 524_288


def test_shares_of_a_point():
    point = Point(Work(flops=10e12, weights_bytes=2e9, kv_bytes=1e9), ms=4.0, bandwidth_bytes_s=3e12, flop_s=5e15)
    assert (point.reading_ms, point.computing_ms, point.floor_ms) == (1.0, 2.0, 2.0)
    assert (point.mbu, point.mfu, point.share_of_floor) == (0.25, 0.5, 0.5)
    assert point.below_ridge is False
    assert point.work.intensity == pytest.approx(10e12 / 3e9)
    assert point.achieved_flop_s == 10e12 / 4e-3


def test_without_ceilings_nothing_is_said_of_them():
    point = Point(Work(1.0, 1.0, 0.0), ms=1.0)
    assert (point.mbu, point.mfu, point.floor_ms, point.share_of_floor, point.below_ridge) == (None,) * 5


@pytest.mark.parametrize(
    ("changes", "product"),
    [
        ({}, "bf16"),
        ({"dtype": "fp32"}, "fp32"),
        ({"dtype": "fp32", "switches.tf32": True}, "tf32"),
        ({"dtype": "fp32", "switches.autocast": "bf16"}, "bf16"),
        ({"quantization.scheme": "torchao-int8-weight-only"}, "bf16"),  # unpacked, then multiplied as bf16
        ({"quantization.scheme": "torchao-int8-dynamic"}, "int8"),
        ({"quantization.scheme": "torchao-fp8-dynamic"}, None),
    ],
)
def test_which_product_is_the_ceiling(changes, product):
    assert product_of(Recipe().replace(changes)) == product


def run(mode: str = "off", concurrency: int = 1, work: EngineWork | None = None, **times) -> Run:
    few = Quantiles(n=16)
    measurement = Measurement(
        ttft_ms=few,
        tpot_ms=Quantiles(p50=8.0, mean=8.0, n=16),
        itl_ms=few,
        e2e_ms=few,
        duration_s=16.0,
        requests=16,
        completed=16,
        failed=0,
        cancelled=0,
        prompt_tokens=16 * 128,
        output_tokens=16 * 128,
        output_tok_s=100.0,
        total_tok_s=200.0,
        requests_s=1.0,
        **times,
    )
    recipe = Recipe(device="cuda:0").replace(
        {"model.source": "shape", "model.id": "llama-2-7b", "batching.mode": mode}
    )
    return Run(
        id="r",
        created=now(),
        recipe=recipe,
        workload=Workload(concurrency=concurrency),
        hardware=MACHINE,
        status="ok",
        measurement=measurement,
        engine_work=work,
    )


def work_of(**changes) -> EngineWork:
    values = {
        "prefill_s": 0.64,
        "decode_s": 12.7,
        "decode_steps": 2000,
        "prompt_tokens": 2048,
        "output_tokens": 2048,
        "cached_prompt_tokens": 0,
        "kv_evictions": 0,
        "preemptions": 0,
    }
    return EngineWork(**(values | changes))


def test_a_run_of_one_sequence():
    """6.42 ms a token at batch 1 is gpt-fast's class: 4.42 ms of weights and 0.03 ms of keys are 69 %."""
    found = roofline_of(run(work=work_of(decode_s=12.84)), predictor("llama-2-7b"), H100)
    assert found is not None
    assert (found.sequences, found.prompt_tokens, found.context_tokens, found.product) == (1, 128, 192, "bf16")
    assert found.decode.ms == pytest.approx(6.42)
    assert found.decode.mbu == pytest.approx((13.2147e9 + 192 * 524_288) / 2.99e12 / 6.42e-3, rel=1e-3)
    assert found.decode.share_of_floor == found.decode.mbu
    assert found.decode.below_ridge is True
    assert found.prefill.ms == pytest.approx(40.0)  # 0.64 s for 16 prompts
    assert found.prefill.mfu == pytest.approx(2 * 6.476e9 * 128 / 781e12 / 40e-3, rel=0.02)


def test_without_the_engines_counters_the_clients_tpot_is_taken():
    found = roofline_of(run(), predictor("llama-2-7b"), None)
    assert found is not None
    assert (found.decode.ms, found.decode.mbu) == (8.0, None)


def test_sequences_in_a_step():
    together = Quantiles(mean=3200.0, n=16)  # 51.2 s of decoding in 12.8 s: four at once
    work = work_of(decode_s=12.8)
    assert sequences_of(run("static", 8, work, decode_ms=together)) == pytest.approx(4.0)
    assert sequences_of(run("continuous", 8, work, decode_ms=together)) == pytest.approx(51.2 / 13.44)
    assert sequences_of(run("static", 2, work, decode_ms=together)) == 2.0  # never more than there are clients
    assert sequences_of(run("off", 8, work, decode_ms=together)) == 1.0
    assert sequences_of(run("continuous", 8)) == 8.0  # nothing else is known


def test_a_run_without_measurement_has_no_place():
    failed = run().model_copy(update={"measurement": None})
    assert roofline_of(failed, predictor("llama-2-7b"), H100) is None
