"""nvml: scripted devices come out in the stated units, and what is missing is None."""

from __future__ import annotations

import pytest

from mcp_core.monitoring.fake_nvml import FakeDevice, FakeInstance, FakeNvml
from mcp_core.monitoring.nvml import nvml_reason, read_devices


def test_a_reading_has_the_scripted_values_in_their_units() -> None:
    device = FakeDevice(
        name="H100",
        uuid="GPU-1",
        memory_total_bytes=80_000,
        memory_used_bytes=(50_000,),
        utilization_percent=(97,),
        memory_utilization_percent=(41,),
        power_mw=(350_500,),
        power_limit_mw=(700_000,),
        temperature_c=(61,),
        sm_clock_mhz=(1_755,),
        memory_clock_mhz=(2_619,),
        throttle_reasons=(4,),
        energy_mj=(123,),
        processes=({42: 30_000, 43: 10_000},),
    )
    driver, (reading,) = read_devices(FakeNvml([device], driver="580.1"))
    assert driver == "580.1"
    assert (reading.index, reading.uuid, reading.name) == (0, "GPU-1", "H100")
    assert (reading.memory_used_bytes, reading.memory_total_bytes) == (50_000, 80_000)
    assert reading.compute_capability == (9, 0)
    assert (reading.utilization_percent, reading.memory_utilization_percent) == (97.0, 41.0)
    assert (reading.power_w, reading.power_limit_w) == (350.5, 700.0)
    assert (reading.temperature_c, reading.sm_clock_mhz, reading.memory_clock_mhz) == (61, 1_755, 2_619)
    assert (reading.throttle_reasons, reading.energy_mj) == (4, 123)
    assert reading.process_memory_bytes == {42: 30_000, 43: 10_000}


def test_missing_counters_are_none() -> None:
    bare = FakeDevice(
        utilization_percent=(None,),
        power_mw=(None,),
        power_limit_mw=(None,),
        temperature_c=(None,),
        sm_clock_mhz=(None,),
        memory_clock_mhz=(None,),
        throttle_reasons=(None,),
        energy_mj=(None,),
        processes=(None,),
    )
    _, (reading,) = read_devices(FakeNvml([bare]))
    assert reading.utilization_percent is None
    assert reading.memory_utilization_percent is None
    assert reading.power_w is None
    assert reading.power_limit_w is None
    assert reading.temperature_c is None
    assert reading.sm_clock_mhz is None
    assert reading.memory_clock_mhz is None
    assert reading.throttle_reasons is None
    assert reading.energy_mj is None
    assert reading.process_memory_bytes == {}


def test_a_lost_device_is_left_out_and_the_others_stay() -> None:
    lost, healthy = FakeDevice(memory_used_bytes=(None,)), FakeDevice(uuid="GPU-2")
    _, readings = read_devices(FakeNvml([lost, healthy]))
    assert [(reading.index, reading.uuid) for reading in readings] == [(1, "GPU-2")]


@pytest.mark.parametrize(
    ("names", "seen"),
    [
        ("1", ["GPU-b"]),
        ("2,0", ["GPU-c", "GPU-a"]),
        ("GPU-b", ["GPU-b"]),
        ("MIG-x, 0", ["GPU-c", "GPU-a"]),
        ("0,7,1", ["GPU-a"]),  # CUDA stops at the first it does not find
        ("", []),
        ("-1", []),
    ],
)
def test_devices_that_cuda_hides_are_left_out_and_the_others_numbered_as_cuda_does(
    monkeypatch: pytest.MonkeyPatch, names: str, seen: list[str]
) -> None:
    split = (None, FakeInstance(uuid="MIG-xyz"))
    nvml = FakeNvml([FakeDevice(uuid="GPU-a"), FakeDevice(uuid="GPU-b"), FakeDevice(uuid="GPU-c", instances=split)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    _, readings = read_devices(nvml)
    assert [(reading.index, reading.uuid) for reading in readings] == list(enumerate(seen))


def test_without_a_driver_there_are_no_devices_and_a_reason() -> None:
    nvml = FakeNvml(reason="NVML Shared Library Not Found")
    assert read_devices(nvml) == (None, ())
    assert nvml_reason(nvml) == "NVML Shared Library Not Found"


def test_a_driver_without_devices_says_so() -> None:
    assert read_devices(FakeNvml())[1] == ()
    assert nvml_reason(FakeNvml()) == "the driver lists no device"
    assert nvml_reason(FakeNvml([FakeDevice()])) is None


def test_nvml_is_given_back_after_every_reading() -> None:
    nvml = FakeNvml([FakeDevice()])
    read_devices(nvml)
    nvml_reason(nvml)
    assert nvml.users == 0


def test_the_fake_has_every_name_that_is_read_from_pynvml() -> None:
    import inspect
    import re

    import pynvml

    from mcp_core.monitoring import nvml

    used = set(re.findall(r"nvml\.(nvml\w+|NVML\w+)", inspect.getsource(nvml)))
    assert len(used) > 15
    assert {name for name in used if not hasattr(pynvml, name)} == set()
    assert {name for name in used if not hasattr(FakeNvml([]), name)} == set()
