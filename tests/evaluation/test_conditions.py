"""Conditions of a planted recording."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mcp_core.ceilings import Ceilings
from mcp_core.evaluation.conditions import conditions, incomparable
from mcp_core.hardware import Device, detect
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.results import Effective

GPU = Device(id="cuda:1", kind="cuda", name="H100", memory_total_bytes=80_000, memory_free_bytes=80_000)
CEILINGS = Ceilings(
    device="cuda:1",
    device_name="H100",
    torch="2.13",
    created=datetime.now(UTC),
    read_bytes_s=1e12,
    copy_bytes_s=1e12,
    matmul_flop_s={},
    op_us=4.5,
)
MACHINE = detect().model_copy(update={"devices": (*detect().devices, GPU), "ceilings": (CEILINGS,)})


def effective(device):
    return Effective(
        device=device,
        dtype="bf16",
        scheme="none",
        attention="sdpa",
        kv_kind="dynamic",
        max_context=512,
        threads=1,
        batching_mode="off",
    )


def telemetry(**gauges):
    return RunTelemetry(
        began=datetime.now(UTC),
        interval_s=1,
        at_s=(0.5, 1.5),
        gauges={name.replace("__", "."): values for name, values in gauges.items()},
        counters={},
        labels={"host": "Host", "gpu0": "H100", "gpu1": "H100"},
        throttle_reasons={"gpu1": ("software power cap",)},
    )


RECORDED = telemetry(
    host__load_average=(1.0, 3.0),
    gpu0__sm_clock_mhz=(1.0, 1.0),
    gpu1__sm_clock_mhz=(1900.0, 1700.0),
    gpu1__power_limit_w=(700.0, 650.0),
    gpu1__temperature_c=(50.0, 61.0),
    gpu1__power_throttled=(0.0, 1.0),
    gpu1__others_memory_bytes=(0.0, 2e9),
)


def test_figures_are_those_of_the_runs_own_device():
    found = conditions(RECORDED, MACHINE, effective("cuda:1"))
    assert (found.load_average, found.others_cores, found.launch_us) == (2.0, None, 4.5)
    device = found.device
    assert (device.sm_clock_mhz, device.power_limit_w, device.temperature_c) == (1800, 650, 61)
    assert (device.throttled, device.throttle_reasons) == (0.5, ("software power cap",))
    assert device.memory_clock_mhz is None


def test_throttling_and_others_make_a_run_incomparable():
    reasons = list(incomparable(conditions(RECORDED, MACHINE, effective("cuda:1"))))
    assert reasons == [
        "throttled: clocks were held down 50% of the time (software power cap)",
        "shared device: other processes held 2.00 GB of its memory",
    ]
    assert list(incomparable(conditions(RECORDED, MACHINE, effective("cuda:0")))) == []


@pytest.mark.parametrize(("recorded", "device"), [(RECORDED, "cpu"), (RECORDED, None)])
def test_without_a_gpu_there_are_the_hosts_figures_alone(recorded, device):
    found = conditions(recorded, MACHINE, effective(device) if device else None)
    assert found.device is None
    assert found.load_average == 2.0
    assert list(incomparable(found)) == []


def test_nothing_recorded_is_nothing_known():
    assert conditions(None, MACHINE, effective("cpu")) is None
    assert list(incomparable(None)) == []
