"""Runs, traces and telemetry made up so that their cause is known."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mcp_core.ceilings import Ceilings
from mcp_core.evaluation.roofline import roofline_of
from mcp_core.evaluation.verdict_values import Case
from mcp_core.hardware import Device, Hardware
from mcp_core.models.catalog import resolve
from mcp_core.models.footprint import Predictor
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.recipe import Recipe
from mcp_core.results import EngineWork, Measurement, Quantiles, Run
from mcp_core.trace_summary import PhaseSummary, TraceSummary
from mcp_core.workload import Workload

GB = 10**9
CREATED = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
H100 = Ceilings.model_validate(
    {
        "device": "cuda:0",
        "device_name": "NVIDIA H100",
        "torch": "2.13.0",
        "created": CREATED,
        "read_bytes_s": 2.9e12,
        "copy_bytes_s": 2.99e12,
        "matmul_flop_s": {"fp32": 50e12, "tf32": 390e12, "bf16": 781e12, "fp16": 781e12, "int8": 1500e12},
        "op_us": 5.0,
        "sync_us": 12.0,
    }
)
MACHINE = Hardware(
    host="h",
    os="Linux",
    python="3.11",
    cpu="CPU",
    cores=8,
    cpu_flags=("avx2",),
    devices=(
        Device(id="cpu", kind="cpu", name="CPU", memory_total_bytes=64 * GB, memory_free_bytes=60 * GB),
        Device(
            id="cuda:0",
            kind="cuda",
            name="NVIDIA H100",
            memory_total_bytes=80 * GB,
            memory_free_bytes=79 * GB,
            compute_capability=(9, 0),
        ),
    ),
    torch_cuda="13.0",
    libraries={"torch": "2.13.0", "torchao": "0.18.0", "bitsandbytes": "0.50.2", "xllamacpp": "2026.10"},
    ceilings=(H100,),
)


def recipe(**changes: Any) -> Recipe:
    """A 7B shape in bf16 on the H100."""
    named = {"model": {"source": "shape", "id": "llama-2-7b"}, "device": "cuda:0", "threads": 1}
    return Recipe().replace(named | {key.replace("__", "."): value for key, value in changes.items()})


def run(
    asked: Recipe | None = None,
    *,
    queue_ms: float = 0.0,
    prefill_ms: float = 40.0,
    step_ms: float = 40.0,
    outside_ms: float = 1.0,
    prompt: int = 128,
    output: int = 128,
    clients: int = 1,
    at_once: int = 1,
    requests: int = 16,
    **work: Any,
) -> Run:
    """Every request takes the same times; ``at_once`` of them share a decode step."""
    decode_ms = step_ms * (output - 1)
    e2e_ms = queue_ms + prefill_ms + decode_ms + outside_ms

    def all_of(value: float) -> Quantiles:
        return Quantiles(mean=value, p50=value, n=requests)

    measurement = Measurement(
        ttft_ms=all_of(queue_ms + prefill_ms + outside_ms),
        tpot_ms=all_of(step_ms),
        itl_ms=all_of(step_ms),
        e2e_ms=all_of(e2e_ms),
        duration_s=e2e_ms * requests / clients / 1e3,
        requests=requests,
        completed=requests,
        failed=0,
        cancelled=0,
        prompt_tokens=requests * prompt,
        output_tokens=requests * output,
        output_tok_s=clients * output / e2e_ms * 1e3,
        total_tok_s=None,
        requests_s=None,
        engine_tpot_ms=step_ms,
        queue_ms=all_of(queue_ms),
        prefill_ms=all_of(prefill_ms),
        decode_ms=all_of(decode_ms),
    )
    counted = {
        "prefill_s": prefill_ms * requests / 1e3,
        "decode_s": decode_ms * requests / at_once / 1e3,
        "decode_steps": (output - 1) * requests // at_once,
        "prompt_tokens": requests * prompt,
        "output_tokens": requests * output,
        "cached_prompt_tokens": 0,
        "kv_evictions": 0,
        "preemptions": 0,
    }
    return Run(
        id="20261125-120000-aaaaaaaa",
        created=CREATED,
        recipe=asked or recipe(),
        workload=Workload(concurrency=clients, requests=requests),
        hardware=MACHINE,
        status="ok",
        measurement=measurement,
        engine_work=EngineWork(**(counted | work)),
    )


def case(of: Run, *, ceilings: Ceilings | None = H100, **known: Any) -> Case:
    """That Run with all that its sizes and ceilings say."""
    model = resolve(of.recipe.model)
    roofline = roofline_of(of, Predictor(of.recipe, model, MACHINE), ceilings)
    return Case(of, MACHINE, roofline=roofline, ceilings=ceilings, model=model, **known)


def phase(step_ms: float, *, launches: float, busy_ms: float | None, **parts_ms: float) -> PhaseSummary:
    """Steps of one kind; the gap is what the parts leave of the step."""
    return PhaseSummary(
        steps=16,
        step_ms=step_ms,
        device_busy_ms=busy_ms,
        parts_ms=parts_ms,
        host_gap_ms=step_ms - (sum(parts_ms.values()) if busy_ms is None else busy_ms),
        launches=launches,
        sections_ms={"sampling": 0.1},
    )


def trace(decode: PhaseSummary, prefill: PhaseSummary | None = None) -> TraceSummary:
    """On the H100."""
    return TraceSummary(trace_id="t", device="cuda:0", events=1, wall_ms=1.0, decode=decode, prefill=prefill)


def telemetry(*, thermal: float = 0.0, power: float = 0.0) -> RunTelemetry:
    """Ten seconds of which these shares were throttled."""

    def share(of: float) -> tuple[float, ...]:
        return tuple(float(second < of * 10) for second in range(10))

    return RunTelemetry(
        began=CREATED,
        interval_s=1.0,
        at_s=tuple(second + 0.5 for second in range(10)),
        gauges={
            "gpu0.thermal_throttled": share(thermal),
            "gpu0.power_throttled": share(power),
            "gpu0.sm_clock_mhz": tuple(1980.0 - 600 * each for each in share(thermal)),
        },
        counters={},
        labels={"gpu0": "NVIDIA H100"},
        throttle_reasons={"gpu0": ("sw_thermal_slowdown",)} if thermal else {},
    )
