"""Conditions of a planted recording."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mcp_core.ceilings import Ceilings
from mcp_core.evaluation.conditions import conditions, incomparable, own_clock_mhz, remarks
from mcp_core.hardware import Device, detect
from mcp_core.monitoring.fake_nvml import FakeDevice, FakeNvml
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.monitoring.series import readings_of
from mcp_core.monitoring.taker import Taker
from mcp_core.results import Conditions, Effective

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


def telemetry(*, reasons=("software power cap",), **gauges):
    points = max(map(len, gauges.values()))
    return RunTelemetry(
        began=datetime.now(UTC),
        interval_s=1,
        at_s=tuple(at + 0.5 for at in range(points)),
        gauges={name.replace("__", "."): values for name, values in gauges.items()},
        counters={},
        labels={"host": "Host", "gpu0": "H100", "gpu1": "H100"},
        throttle_reasons={"gpu1": reasons},
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


# As recorded on an H100 at 64 users (2026-11-26): at its own limit, which nobody lowered, 11 of 16 seconds. The cap
# and the clock are not read at one instant: in the third second there is none, and yet its clock.
CAPPED = (0.0, 1.0, 0.0, *(1.0,) * 10, 0.0, 0.0, 0.0)
CLOCKS = (1980.0, 1980.0, 1785.0, 1965.0, 1935.0, *(1965.0,) * 4, 1950.0, 1950.0, 1965.0, 1965.0, *(1980.0,) * 3)


def capped(
    *, limit_w=700.0, default_w=700.0, slowed=0.0, clocks=CLOCKS, cap=CAPPED, reasons=("software power cap",)
):
    points = len(cap)
    default = {} if default_w is None else {"gpu1__power_limit_default_w": (default_w,) * points}
    recorded = telemetry(
        reasons=reasons,
        gpu1__sm_clock_mhz=clocks,
        gpu1__power_limit_w=(limit_w,) * points,
        gpu1__power_throttled=cap,
        gpu1__power_capped=cap,
        gpu1__thermal_throttled=(0.0,) * points,
        gpu1__slowed=tuple(float(at < slowed * points) for at in range(points)),
        **default,
    )
    return conditions(recorded, MACHINE, effective("cuda:1"))


def test_a_card_at_its_own_power_limit_is_comparable_and_says_so():
    found = capped()
    assert list(incomparable(found)) == []
    assert found.device.throttled == pytest.approx(11 / 16)
    assert list(remarks(found)) == [
        "power cap: at the limit of 700 W, the card's own, 69% of the time, mean SM clock 1,955 MHz "
        "(1,980 MHz without the cap)"
    ]
    raised = next(remarks(capped(limit_w=800.0)))
    assert raised.startswith("power cap: at the limit of 800 W, above the card's own 700 W, 69% of the time")


def test_a_moment_at_the_limit_is_no_remark():
    assert list(remarks(capped(cap=(1.0, *(0.0,) * 29), clocks=(1980.0,) * 30))) == []


def test_a_lowered_limit_is_not_comparable_and_named():
    assert list(remarks(capped(limit_w=500.0))) == []
    assert list(incomparable(capped(limit_w=500.0))) == [
        "throttled: clocks were held down 69% of the time "
        "(software power cap; the limit was 500 W, below the card's own 700 W)"
    ]


def test_without_a_known_default_a_cap_is_judged_as_before():
    assert list(remarks(capped(default_w=None))) == []
    assert list(incomparable(capped(default_w=None))) == [
        "throttled: clocks were held down 69% of the time (software power cap)"
    ]


def test_heat_and_slowdowns_by_the_board_are_not_comparable_at_any_limit():
    both = ("software power cap", "hardware slowdown")
    (reason,) = incomparable(capped(slowed=0.25, reasons=both))
    assert reason == "throttled: clocks were held down 25% of the time (hardware slowdown)"


@pytest.mark.parametrize("bit", [0x8, 0x20, 0x40, 0x80])
def test_each_slowdown_that_nvml_names_counts_and_the_power_cap_alone_does_not(bit):
    def found(reasons):
        nvml = FakeNvml([FakeDevice(), FakeDevice(throttle_reasons=(reasons,))])
        taker = Taker(nvml)
        taker.open()
        gauges = readings_of(taker.take(())).gauges
        kept = {name.replace(".", "__"): (value,) for name, value in gauges.items() if value is not None}
        return conditions(telemetry(**kept), MACHINE, effective("cuda:1"))

    assert list(incomparable(found(0x4))) == []
    assert list(remarks(found(0x4)))
    assert next(incomparable(found(0x4 | bit))).startswith("throttled")
    assert found(0x4).device.power_limit_default_w == 700


def test_the_clock_to_compare_by_is_the_one_away_from_the_cards_own_cap():
    assert own_clock_mhz(capped()) == 1980
    slow = capped(cap=(0.0,) * 16)
    assert own_clock_mhz(slow) == slow.device.sm_clock_mhz == pytest.approx(1954.7, abs=0.1)
    # A lowered limit, or one of which nothing is known, explains nothing away.
    for other in (capped(limit_w=500.0), capped(default_w=None)):
        assert own_clock_mhz(other) == pytest.approx(1954.7, abs=0.1)


def test_a_card_that_was_always_capped_has_no_clock_to_compare_by_unless_something_else_held_it_too():
    always = {"cap": (1.0,) * 16}
    assert own_clock_mhz(capped(**always)) is None
    locked = capped(**always, reasons=("clocks set by an application", "software power cap"))
    assert own_clock_mhz(locked) == locked.device.sm_clock_mhz
    assert own_clock_mhz(None) is None


def test_conditions_of_an_old_run_are_read_and_judged_as_they_were():
    kept = {
        "sm_clock_mhz": 1917.0,
        "power_limit_w": 700.0,
        "throttled": 0.67,
        "throttle_reasons": ["software power cap"],
    }
    old = Conditions.model_validate({"load_average": 1.0, "device": kept})
    assert list(remarks(old)) == []
    assert list(incomparable(old)) == ["throttled: clocks were held down 67% of the time (software power cap)"]
    assert own_clock_mhz(old) == 1917
