"""Verdicts on Runs whose cause is known, because it was planted: values from facts/gpu.md where there are any."""

from __future__ import annotations

import asyncio

import pytest

from mcp_core.evaluation.findings import findings_of
from mcp_core.evaluation.run_recorder import RunRecorder
from mcp_core.evaluation.time_shares import launch_us, request_shares, step_shares
from mcp_core.evaluation.verdicts import decide
from mcp_core.monitoring.fake_nvml import FakeDevice, FakeNvml
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.results import Failure
from tests.evaluation.why_cases import H100, case, phase, recipe, run, telemetry, trace

EAGER = phase(38.0, launches=1200, busy_ms=6.2, gemm=5.3, attention=0.4, elementwise=0.5)
RECORDED = phase(6.4, launches=1, busy_ms=6.3, gemm=5.4, attention=0.4, elementwise=0.5)


def test_eager_decode_on_a_slow_host_is_launch_bound():
    """facts/gpu.md: transformers generate, bf16, eager: 38.1 ms a token, of which reading the weights is 4.4."""
    found = decide(case(run(step_ms=38.1), trace=trace(EAGER)))
    assert (found.cause, found.finding.confidence) == ("launch", "high")
    assert found.change is not None
    assert found.change.fields == {"compile": "graphs"}
    assert found.change.level == "predicted"
    assert "1,200 operations" in found.finding.sentence
    assert found.to_decide == ()


def test_recorded_steps_are_bandwidth_bound():
    """The same as one CUDA graph: 6.42 ms, 69 % of the bandwidth."""
    compiled = recipe(compile="graphs")
    found = decide(case(run(compiled, step_ms=6.42), trace=trace(RECORDED)))
    assert (found.cause, found.finding.confidence) == ("bandwidth", "high")
    assert any(line.what == "MBU of decode" and line.figure == "69%" for line in found.finding.evidence)
    assert found.change is not None
    assert found.change.fields == {"quantization.scheme": "torchao-int8-weight-only"}


def test_the_run_alone_tells_the_same_and_asks_for_a_trace():
    eager, recorded = decide(case(run(step_ms=38.1))), decide(case(run(recipe(compile="graphs"), step_ms=6.42)))
    assert (eager.cause, eager.finding.confidence) == ("launch", "low")
    assert (recorded.cause, recorded.finding.confidence) == ("bandwidth", "medium")
    assert all("profile" in each.to_decide[0] for each in (eager, recorded))


def test_without_ceilings_and_trace_it_does_not_decide():
    found = decide(case(run(step_ms=38.1), ceilings=None))
    assert found.cause == "undecided"
    assert found.change is None
    assert [words.partition(" ")[0] for words in found.to_decide] == ["A", "The"]
    assert "doctor --measure" in found.to_decide[1]
    assert "batching off, KV dynamic, compile off" in found.to_decide[0]  # a profile of other settings does not do


def test_a_bandwidth_that_is_not_known_is_never_more_than_a_guess():
    found = decide(case(run(recipe(compile="graphs"), step_ms=6.42), trace=trace(RECORDED), ceilings=None))
    assert (found.cause, found.finding.confidence) == ("bandwidth", "low")
    assert "no ceiling" in found.finding.sentence


def test_long_prompts_are_compute_bound():
    """Prompts of 3,800 and 4 tokens: prefill at 57 % of the matmul rate."""
    tight = run(recipe(compile="graphs"), prompt=3800, output=4, prefill_ms=120.0, step_ms=6.5)
    found = decide(case(tight))
    assert found.cause == "compute"
    assert found.change is not None
    assert found.change.fields == {"quantization.scheme": "torchao-int8-dynamic"}
    fp32 = run(recipe(dtype="fp32", compile="graphs"), prompt=3800, output=4, prefill_ms=1500.0, step_ms=10.0)
    change = decide(case(fp32)).change
    assert change is not None
    assert change.fields == {"dtype": "bf16"}
    # At most as much as the rates differ: 50 against 781 TFLOP/s.
    assert "times as fast" in change.expected


def test_a_huge_batch_decodes_compute_bound():
    llama = {"source": "shape", "id": "llama-3.1-8b"}
    batch = recipe(model=llama, batching__mode="continuous", batching__max_requests=2048, compile="graphs")
    many = {"clients": 1024, "at_once": 1024, "requests": 1024}
    huge = run(batch, prompt=8, output=64, step_ms=30.0, prefill_ms=10.0, prefill_s=0.1, **many)
    assert decide(case(huge)).cause == "compute"


def test_unpacking_is_dequantization_bound():
    """NF4 whose kernels take four times as long as the reading of its bytes."""
    nf4 = recipe(quantization__scheme="bnb-nf4", compile="graphs")
    steps = phase(8.0, launches=1, busy_ms=7.9, gemm=0.3, dequantization=7.0, attention=0.3, elementwise=0.3)
    found = decide(case(run(nf4, step_ms=8.0), trace=trace(steps)))
    assert found.cause == "dequantization"
    assert found.change is not None
    assert found.change.fields == {"quantization.scheme": "torchao-int4-weight-only"}
    many = run(nf4.replace({"batching.mode": "continuous"}), clients=16, at_once=16, step_ms=8.0)
    batched = decide(case(many, trace=trace(steps)))
    assert batched.change is not None
    assert batched.change.fields == {
        "quantization.scheme": "torchao-int8-weight-only"
    }  # int4's kernels are slow there


def test_fused_kernels_that_read_at_full_speed_are_not_blamed_for_unpacking():
    """int8 weights unpacked within the product: 2.27 ms of reading in 3 ms of kernels is bandwidth."""
    int8 = recipe(quantization__scheme="torchao-int8-weight-only", compile="graphs")
    steps = phase(3.2, launches=1, busy_ms=3.2, gemm=0.1, dequantization=2.8, attention=0.2, elementwise=0.1)
    assert decide(case(run(int8, step_ms=3.2), trace=trace(steps))).cause == "bandwidth"


# The 7B shape on an H100, 2026-11-26, recorded as CUDA graphs: step of the trace, kernels, their parts (ms).
RECORDED_INT8 = phase(
    6.92, launches=4, busy_ms=5.19, gemm=0.10, dequantization=3.15, attention=0.24, kv=0.04, elementwise=1.66
)
RECORDED_NF4 = phase(
    7.49, launches=4, busy_ms=5.69, gemm=0.10, dequantization=3.72, attention=0.24, kv=0.04, elementwise=1.59
)


def test_products_that_unpack_what_they_read_are_bandwidth_bound():
    """int8 rows: 6.5 GB in 3.15 ms are 2.1 TB/s, 70 % of the bandwidth. None of it is unpacking alone."""
    int8 = recipe(quantization__scheme="torchao-int8-weight-only", compile="graphs")
    found = decide(case(run(int8, prefill_ms=15.0, step_ms=5.48), trace=trace(RECORDED_INT8)))
    assert (found.cause, found.finding.confidence) == ("bandwidth", "high")
    assert found.finding.share == pytest.approx((3.15 + 0.10 + 0.24 + 0.04) / 5.48, abs=0.02)
    assert "dequantization" not in {each.cause for each in found.others}
    assert found.change is not None
    assert found.change.fields == {"quantization.scheme": "torchao-int4-weight-only"}


def test_products_that_unpack_longer_than_they_read_are_not():
    """NF4: 3.7 GB in 3.72 ms are a third of the bandwidth. What reading takes at best is left out of unpacking."""
    nf4 = recipe(quantization__scheme="bnb-nf4", compile="graphs")
    found = decide(case(run(nf4, prefill_ms=15.0, step_ms=5.98), trace=trace(RECORDED_NF4)))
    assert (found.cause, found.finding.confidence) == ("dequantization", "high")
    reading = next(each for each in found.others if each.cause == "bandwidth")
    assert found.finding.share + reading.share == pytest.approx((3.72 + 0.10 + 0.24 + 0.04) / 5.98, abs=0.02)
    assert "unpacking takes the kernels longer" in reading.sentence


def test_kernels_of_their_own_that_unpack_are_not_taken_for_reading():
    """The same time in two kernels, one that unpacks and a product that reads: only the second reads."""
    int8 = recipe(quantization__scheme="torchao-int8-weight-only", compile="graphs")
    steps = phase(8.0, launches=4, busy_ms=8.0, gemm=3.5, dequantization=4.0, elementwise=0.5)
    found = decide(case(run(int8, step_ms=8.0), trace=trace(steps)))
    assert found.cause == "dequantization"
    assert found.finding.share == pytest.approx(4.0 / 8.0, abs=0.02)


@pytest.mark.parametrize("steps", [RECORDED_INT8, RECORDED_NF4])
def test_what_recording_costs_the_host_is_not_the_runs(steps):
    """The trace's steps are 1.4 ms longer than the Run's: the profiler's cost, not time that waits for Python."""
    int8 = recipe(quantization__scheme="torchao-int8-weight-only", compile="graphs")
    causes = {each.cause: each.share for each in findings_of(case(run(int8, step_ms=5.98), trace=trace(steps)))}
    assert causes.get("host", 0.0) < 0.12
    slept = {each.cause: each.share for each in findings_of(case(run(int8, step_ms=7.49), trace=trace(steps)))}
    assert slept["host"] > 0.18  # the Run itself waited


def test_llm_int8_that_no_graph_can_hold_has_a_way_out():
    """3,473 starts a step, on the H100: the change is the other int8 scheme, whose steps can be recorded."""
    steps = phase(166.0, launches=3473, busy_ms=10.76, gemm=4.15, dequantization=3.32, elementwise=3.29)
    found = decide(case(run(recipe(quantization__scheme="bnb-int8"), step_ms=103.0), trace=trace(steps)))
    assert found.cause == "launch"
    assert "of a decode step of 103 ms" in found.finding.sentence
    assert found.change is not None
    assert found.change.fields == {"compile": "graphs", "quantization.scheme": "torchao-int8-weight-only"}


def test_many_clients_of_mode_off_are_queue_bound():
    found = decide(case(run(clients=16, queue_ms=15 * 5100.0)))
    assert (found.cause, found.finding.confidence) == ("queue", "high")
    assert found.finding.share == pytest.approx(15 / 16, abs=0.01)
    assert found.change is not None
    assert found.change.fields == {"batching.mode": "continuous"}
    assert found.to_decide == ()  # a trace would change nothing


def test_a_change_carries_what_it_needs():
    """Batching wants a dynamic cache and sdpa; the change says all of it."""
    asked = recipe(kv__kind="quantized-fp8", attention="eager")
    change = decide(case(run(asked, clients=16, queue_ms=50_000.0))).change
    assert change is not None
    assert change.fields == {"batching.mode": "continuous", "kv.kind": "dynamic", "attention": "sdpa"}


def test_a_sleep_in_the_loop_is_host_bound():
    """20 ms of nothing in every step, far more than starting 60 operations takes."""
    steps = phase(22.0, launches=60, busy_ms=1.5, gemm=1.0, elementwise=0.5)
    found = decide(case(run(step_ms=22.0), trace=trace(steps)))
    assert found.cause == "host"
    assert any("Section sampling" in line.what for line in found.finding.evidence)


def test_time_outside_the_engine_is_host_bound_without_a_trace():
    found = decide(case(run(recipe(compile="graphs"), step_ms=6.4, outside_ms=3000.0)))
    assert found.cause == "host"


@pytest.mark.parametrize("preemptions", [0, 40])
def test_a_tiny_pool_is_capacity_bound(preemptions):
    """64 pages of 16 tokens hold four requests of 256; sixteen ask at once."""
    tiny = recipe(batching__mode="continuous", batching__kv_blocks=64)
    found = decide(
        case(
            run(
                tiny,
                clients=16,
                at_once=4,
                queue_ms=9000.0,
                kv_capacity_tokens=64 * 16,
                preemptions=preemptions,
            )
        )
    )
    assert found.cause == "capacity"
    assert found.finding.confidence == ("high" if preemptions else "medium")
    assert found.change is not None
    assert set(found.change.fields) == {"batching.kv_blocks"}
    assert found.change.fields["batching.kv_blocks"] >= 16 * 256 / 16  # all sixteen


def test_a_pool_that_holds_all_is_not_blamed():
    roomy = recipe(batching__mode="continuous", batching__max_requests=4)
    found = findings_of(case(run(roomy, clients=16, at_once=4, queue_ms=9000.0, kv_capacity_tokens=10**6)))
    assert "capacity" not in {each.cause for each in found}
    assert found[0].cause == "queue"


@pytest.mark.parametrize(("reason", "word"), [("thermal", "heat"), ("power", "power")])
def test_lowered_clocks_come_before_any_other_cause(reason, word):
    held = telemetry(**{reason: 0.6})
    found = decide(case(run(step_ms=38.1), trace=trace(EAGER), telemetry=held))
    assert found.cause == "throttled"
    assert word in found.finding.sentence
    assert found.others[0].cause == "launch"
    assert found.change is None
    assert "measure again" in found.advice


@pytest.mark.parametrize(
    ("default_w", "slowed", "cause"), [(700, 0, "launch"), (800, 0, "throttled"), (700, 0.5, "throttled")]
)
def test_a_cards_own_power_cap_is_no_fault(default_w, slowed, cause):
    """A lowered limit is one, and so is a slowdown by the board meanwhile."""
    held = telemetry(power=0.6)
    limits = {"power_limit_w": 700.0, "power_limit_default_w": float(default_w)}
    gauges = {f"gpu0.{name}": (value,) * 10 for name, value in limits.items()}
    gauges["gpu0.power_capped"] = held.gauges["gpu0.power_throttled"]
    gauges["gpu0.slowed"] = tuple(float(second < slowed * 10) for second in range(10))
    held = held.model_copy(update={"gauges": held.gauges | gauges})
    assert decide(case(run(step_ms=38.1), trace=trace(EAGER), telemetry=held)).cause == cause


def test_a_moment_of_lowered_clocks_is_none():
    assert decide(case(run(step_ms=38.1), trace=trace(EAGER), telemetry=telemetry(power=0.1))).cause == "launch"


def test_a_run_that_did_not_fit():
    gone = run().model_copy(
        update={"measurement": None, "status": "failed", "failure": Failure(kind="oom", message="Memory ran out.")}
    )
    found = decide(case(gone))
    assert found.cause == "capacity"
    assert found.change is not None
    assert found.change.fields == {"quantization.scheme": "torchao-int8-weight-only"}
    other = gone.model_copy(update={"failure": Failure(kind="worker", message="It died.")})
    assert decide(case(other)).cause == "undecided"


def test_a_change_that_was_measured_says_so():
    before, compiled = run(step_ms=38.1), recipe(compile="graphs")
    after = run(compiled, step_ms=6.4).model_copy(update={"id": "after"})
    elsewhere = after.model_copy(update={"workload": after.workload.replace({"concurrency": 4})})
    found = decide(case(before, trace=trace(EAGER), runs=(after,))).change
    assert found is not None
    assert (found.run_id, found.level) == ("after", "measured on transformers")
    assert "5.72 times" in found.expected
    predicted = decide(case(before, trace=trace(EAGER), runs=(elsewhere,))).change
    assert predicted is not None
    assert predicted.run_id is None


def test_a_change_that_was_measured_and_did_not_help_is_not_proposed():
    before = run(recipe(compile="graphs"), step_ms=6.42)
    int8 = recipe(compile="graphs", quantization__scheme="torchao-int8-weight-only")
    slower = run(int8, step_ms=9.0).model_copy(update={"id": "slower"})
    change = decide(case(before, trace=trace(RECORDED), runs=(slower,))).change
    assert change is not None
    assert change.fields == {"quantization.scheme": "torchao-int4-weight-only"}


def test_expected_is_bounded_by_the_share():
    """Reading takes 69 % of the step, and int8 leaves 51 % of its bytes."""
    found = decide(case(run(recipe(compile="graphs"), step_ms=6.42)))
    assert found.change is not None
    share = found.finding.share
    remaining = (6.745e9 + 192 * 524_288) / (13.215e9 + 192 * 524_288)
    assert f"{1 / (1 - share * (1 - remaining)):.1f} times" in found.change.expected


def test_shares_of_a_request_and_a_step_are_whole():
    shares = request_shares(run(queue_ms=100.0, outside_ms=50.0))
    assert shares is not None
    assert shares.queue + shares.prefill + shares.decode + shares.outside == pytest.approx(1.0)
    for each in (EAGER, phase(3.0, launches=200, busy_ms=None, gemm=1.0, elementwise=0.5, sampling=0.1)):
        step = step_shares(each, H100)
        assert sum(getattr(step, name) for name in step.__slots__) == pytest.approx(1.0)


def test_launching_is_bounded_by_what_launching_takes():
    """100 operations at 6 x 5 us are 3 ms; a gap of 10 ms is 3 ms launching and 7 ms host."""
    step = step_shares(phase(11.0, launches=100, busy_ms=1.0, gemm=1.0), H100)
    assert launch_us(H100, "cuda") == 30.0
    assert (step.launching, step.host) == (pytest.approx(3 / 11), pytest.approx(7 / 11))


def test_on_a_cpu_fixed_costs_are_taken_from_small_operators_first():
    """400 operators at 0.35 x 5 us: 0.7 ms of the 1.5 ms that operators took; the product keeps its time."""
    step = step_shares(phase(2.0, launches=400, busy_ms=None, gemm=0.5, elementwise=1.0), H100)
    assert step.matrices == pytest.approx(0.5 / 2)
    assert step.small == pytest.approx(0.3 / 2)
    assert step.launching == pytest.approx((0.5 + 0.7) / 2)  # the gap as well
    assert step.host == 0.0


def test_a_trace_of_other_work_says_nothing_about_this():
    """Recorded at batch 1 with short prompts: neither a step of 32 sequences nor a prompt of 2,000 tokens."""
    alone = EAGER.model_copy(update={"sequences": 1.0, "tokens": 1.0})
    short = phase(40.0, launches=1300, busy_ms=38.0, gemm=37.0).model_copy(
        update={"sequences": 1.0, "tokens": 64.0}
    )
    recorded = trace(alone, short)
    batched = recipe(batching__mode="continuous", compile="graphs")
    many = run(batched, clients=32, at_once=32, prompt=2000, output=16, prefill_ms=60.0, step_ms=9.0)
    assert "launch" not in {each.cause for each in findings_of(case(many, trace=recorded))}
    alike = run(recipe(), prompt=100, output=64, step_ms=38.0)
    assert findings_of(case(alike, trace=recorded))[0].cause == "launch"
    own = recorded.model_copy(update={"run_id": many.id})
    assert "launch" in {each.cause for each in findings_of(case(many, trace=own))}


def test_a_slow_host_s_trace_is_of_the_same_step_on_a_gpu():
    """NF4 eager on an H100: 35.1 ms in the Run, 75.3 recorded, of which 5.8 in kernels; 74 would be another's."""
    nf4 = recipe(quantization__scheme="bnb-nf4")
    steps = phase(75.3, launches=1304, busy_ms=5.8, gemm=0.1, dequantization=3.7, elementwise=2.0)
    found = decide(case(run(nf4, step_ms=35.1), trace=trace(steps)))
    assert (found.cause, found.finding.confidence) == ("launch", "high")
    assert "of a decode step of 35.1 ms" in found.finding.sentence
    longer = phase(75.3, launches=1304, busy_ms=74.0, gemm=74.0)
    told = findings_of(case(run(nf4, step_ms=35.1), trace=trace(longer)))
    assert "trace" not in {line.source for each in told for line in each.evidence}


def test_no_profile_is_asked_of_an_engine_that_records_none():
    foreign = run(recipe(engine="vllm"), step_ms=60.0)
    assert not any("profile" in words for words in decide(case(foreign)).to_decide)


SERVER = H100.model_copy(
    update={
        "device": "cpu",
        "device_name": "CPU",
        "threads": 1,
        "read_bytes_s": 26e9,
        "copy_bytes_s": 25e9,
        "matmul_flop_s": {"fp32": 0.1e12, "bf16": 0.22e12, "fp16": 0.02e12, "int8": 0.44e12},
        "op_us": 2.4,
    }
)


@pytest.mark.parametrize(
    ("changes", "steps", "cause", "fields"),
    [
        ({}, {"gemm": 800.0}, "bandwidth", {"quantization.scheme": "bnb-nf4"}),
        (
            {"quantization__scheme": "torchao-int8-weight-only"},
            {"gemm": 100.0, "dequantization": 900.0},
            "dequantization",
            {"quantization.scheme": "none"},
        ),
    ],
)
def test_on_a_cpu_other_changes_help(changes, steps, cause, fields):
    """Its int8 kernels unpack at every use, so int8 is no advice there."""
    asked = recipe(device="cpu", **changes)
    decode = phase(sum(steps.values()) + 20.0, launches=6000, busy_ms=None, **steps)
    found = decide(case(run(asked, step_ms=decode.step_ms), ceilings=SERVER, trace=trace(decode)))
    assert found.cause == cause
    assert found.change is not None
    assert found.change.fields == fields


def test_a_cpu_that_computes_at_its_limit_wants_its_other_cores():
    busy = run(recipe(device="cpu"), prompt=512, output=2, prefill_ms=40_000.0, step_ms=900.0)
    found = decide(case(busy, ceilings=SERVER))
    assert found.cause == "compute"
    assert found.change is not None
    assert found.change.fields == {"threads": 8}


def test_a_device_that_says_it_is_too_hot_is_found_from_its_readings_on():
    """NVML's own bits, recorded beside a Run: software thermal slowdown (0x20) from the second reading on."""
    hot = FakeDevice(throttle_reasons=(1, 0x20), sm_clock_mhz=(1980, 1300))

    async def recorded() -> RunTelemetry:
        recorder = RunRecorder(None, None, "m", asks=False, interval_s=0.05, nvml=FakeNvml([hot]))
        async with recorder:
            await asyncio.sleep(0.3)
        assert recorder.telemetry is not None
        return recorder.telemetry

    found = decide(case(run(step_ms=38.1), telemetry=asyncio.run(recorded())))
    assert found.cause == "throttled"
    assert "heat" in found.finding.sentence
    reasons = next(line.figure for line in found.finding.evidence if line.what == "Reasons by NVML")
    assert "thermal" in reasons
