"""Verdicts on what an engine really did on this CPU, with a cause planted each time; no HTTP, no page."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mcp_core import hardware
from mcp_core.ceilings import Ceilings
from mcp_core.evaluation.ceilings_job import Bench
from mcp_core.evaluation.why import Explanation
from mcp_core.inference.engine import Engine
from mcp_core.results import now
from tests.evaluation.why_engine import SMALL, WIDE, Served, explained


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ceilings() -> Ceilings:
    """Measured here and now, shortly."""
    bench, size = Bench(torch.device("cpu"), tries=3), 2**27
    return Ceilings(
        device="cpu",
        device_name=hardware.detect().devices[0].name,
        torch=torch.__version__,
        threads=1,
        created=now(),
        read_bytes_s=bench.read_bytes_s(size),
        copy_bytes_s=bench.copy_bytes_s(size),
        matmul_flop_s={"fp32": bench.matmul_flop_s("fp32"), "bf16": bench.matmul_flop_s("bf16")},
        op_us=bench.op_us(),
    )


def found_within(attempts: int, cause: str, attempt: Callable[[], Explanation]) -> Explanation:
    """The first attempt that finds the planted cause: others on this machine only ever hide it."""
    for _ in range(attempts):
        found = attempt()
        if found.verdict.cause == cause:
            return found
    pytest.fail(f"{cause} was planted, found {found.verdict}")


# A step takes 0.7 ms, less than a turn of the scheduler: few of them at a time, often enough.
FEW_STEPS, OFTEN = {"output": 8, "rounds": 1}, 12


def test_a_tiny_model_is_launch_bound(ceilings, tmp_path):
    found = found_within(OFTEN, "launch", lambda: explained(Served(SMALL), ceilings, tmp_path, **FEW_STEPS))
    assert found.verdict.finding.confidence == "high"


def test_a_tiny_model_is_launch_bound_by_estimate(ceilings):
    found = found_within(OFTEN, "launch", lambda: explained(Served(SMALL), ceilings, None, **FEW_STEPS))
    assert found.verdict.finding.confidence == "low"


def test_a_sleep_in_the_engines_loop_is_host_bound(ceilings, tmp_path):
    served = Served(SMALL)
    _slowed(served.engine, 0.02)
    found = explained(served, ceilings, tmp_path, output=12, rounds=2)
    assert found.verdict.cause == "host", found.verdict


def _slowed(engine: Engine, sleep_s: float) -> None:
    mode = engine._mode
    step: Callable[[], Any] = mode.step

    def slow() -> Any:
        time.sleep(sleep_s)
        return step()

    mode.step = slow  # type: ignore[method-assign]


def test_a_long_prompt_is_compute_bound(ceilings, tmp_path):
    def attempt() -> Explanation:
        return explained(Served(WIDE), ceilings, tmp_path, prompt=384, output=2, rounds=1)

    found = found_within(3, "compute", attempt)
    assert found.roofline is not None
    assert 0.05 < (found.roofline.prefill.mfu or 0.0) < 1.2


def test_a_huge_batch_is_compute_bound(ceilings, tmp_path):
    """64 sequences share a step: far more FLOPs a byte than this CPU has for one."""

    def attempt() -> Explanation:
        served = Served(WIDE, batching__mode="static", batching__max_requests=64)
        return explained(served, ceilings, tmp_path, clients=64, prompt=4, output=6, rounds=1)

    found = found_within(3, "compute", attempt)
    assert found.roofline is not None
    assert found.roofline.decode.below_ridge is False


def test_unpacking_int8_weights_is_dequantization_bound(ceilings, tmp_path):
    """On a CPU torchao turns int8 weights into numbers at every use; here they are most of what a step reads."""
    wider = WIDE | {"hidden": 1536, "intermediate": 4096, "heads": 16, "kv_heads": 16}

    def attempt() -> Explanation:
        served = Served(wider, quantization__scheme="torchao-int8-weight-only")
        return explained(served, ceilings, tmp_path, output=8, rounds=1)

    found = found_within(3, "dequantization", attempt)
    assert any("aten::" in line.what for line in found.verdict.finding.evidence)


def test_sixteen_clients_of_mode_off_are_queue_bound(ceilings):
    found = explained(Served(SMALL), ceilings, None, clients=16, output=6, rounds=1)
    assert found.verdict.cause == "queue", found.verdict
    assert found.verdict.change is not None
    assert found.verdict.change.fields == {"batching.mode": "continuous"}


def test_a_tiny_pool_is_capacity_bound(ceilings):
    """24 pages of 16 tokens; eight requests of 96 tokens want 48."""
    served = Served(SMALL, batching__mode="continuous", batching__kv_blocks=24, kv__max_context=256)
    found = explained(served, ceilings, None, clients=8, prompt=64, output=32, rounds=1)
    assert found.verdict.cause == "capacity", found.verdict
    assert found.verdict.change is not None
    assert set(found.verdict.change.fields) == {"batching.kv_blocks"}
