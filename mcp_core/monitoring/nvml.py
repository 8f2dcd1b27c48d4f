"""NVIDIA devices through NVML, one reading at a time; a counter that a device lacks is None.

This file does not know about time series (``sampler.py``) or workers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pynvml

__all__ = [
    "POWER_CAP",
    "POWER_REASONS",
    "SLOWDOWN_REASONS",
    "THERMAL_REASONS",
    "MigInstance",
    "NvmlDevice",
    "nvml_reason",
    "read_devices",
    "throttle_names",
]

T = TypeVar("T")

# Bits of nvmlClocksThrottleReasons (nvml.h), which newer drivers call event reasons.
_REASONS = {
    0x1: "idle",
    0x2: "clocks set by an application",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "clocks set for a display",
    0x200: "board limit",
    0x400: "reliability",
}
# The driver's own clock control at the enforced power limit.
POWER_CAP = 0x4
POWER_REASONS = POWER_CAP | 0x80 | 0x200
THERMAL_REASONS = 0x20 | 0x40
# Heat, and what the board or its supply forces: none of these belongs to how a card runs by itself.
SLOWDOWN_REASONS = 0x8 | 0x80 | 0x200 | THERMAL_REASONS


@dataclass(frozen=True, slots=True)
class MigInstance:
    """A part of a device that was split (MIG). Power, temperature and clocks are of the whole device only."""

    index: int
    uuid: str
    name: str
    memory_total_bytes: int
    memory_used_bytes: int
    process_memory_bytes: dict[int, int]


@dataclass(frozen=True, slots=True)
class NvmlDevice:
    """One reading of one device. Bytes, watts, degrees Celsius, MHz, percent, millijoules.

    ``power_limit_w`` is the limit that is enforced, ``power_limit_default_w`` the one that the card came with.
    """

    index: int
    uuid: str
    name: str
    memory_total_bytes: int
    memory_used_bytes: int
    compute_capability: tuple[int, int] | None
    utilization_percent: float | None
    memory_utilization_percent: float | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: float | None
    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    throttle_reasons: int | None
    energy_mj: int | None
    process_memory_bytes: dict[int, int]
    instances: tuple[MigInstance, ...] = ()
    power_limit_default_w: float | None = None


def throttle_names(reasons: int | None) -> tuple[str, ...]:
    """Why clocks are below their highest, in words; empty where the device does not tell."""
    return tuple(name for bit, name in _REASONS.items() if (reasons or 0) & bit)


def read_devices(nvml: Any = pynvml) -> tuple[str | None, tuple[NvmlDevice, ...]]:
    """Driver version and one reading per device; ``(None, ())`` where there is no NVIDIA driver.

    Devices that CUDA_VISIBLE_DEVICES hides are left out and the others numbered as CUDA numbers them, so that
    ``index`` 0 is cuda:0 whatever the driver calls it.
    ``nvml`` is the pynvml module or a stand-in with its functions (``monitoring.fake_nvml.FakeNvml``).
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None, ()
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        return driver, _visible(tuple(_readings(nvml)), os.environ.get("CUDA_VISIBLE_DEVICES"))
    except nvml.NVMLError:
        return None, ()
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def nvml_reason(nvml: Any = pynvml) -> str | None:
    """Why no NVIDIA device can be read, as NVML says it; None when one can."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return str(error)
    try:
        return None if nvml.nvmlDeviceGetCount() else "the driver lists no device"
    except nvml.NVMLError as error:
        return str(error)
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _readings(nvml: Any) -> Iterator[NvmlDevice]:
    """One reading per device; a device that does not even tell its memory (lost, or unified memory) is left out."""
    for index in range(nvml.nvmlDeviceGetCount()):
        with contextlib.suppress(nvml.NVMLError):
            yield _read(nvml, index)


def _visible(readings: tuple[NvmlDevice, ...], names: str | None) -> tuple[NvmlDevice, ...]:
    """Those that the variable names, in its order: numbers, or beginnings of identifiers. Like CUDA it stops at the
    first that names none. (CUDA C++ Programming Guide, environment variables.)"""
    if names is None:
        return readings
    found: list[NvmlDevice] = []
    for name in names.split(","):
        device = next((each for each in readings if _is_named(each, name.strip())), None)
        if device is None:
            break
        found.append(replace(device, index=len(found)))
    return tuple(found)


def _is_named(device: NvmlDevice, name: str) -> bool:
    """A MIG instance names the device it is a part of."""
    if name.isdecimal():
        return device.index == int(name)
    identifiers = (device.uuid, *(instance.uuid for instance in device.instances))
    return name.startswith(("GPU-", "MIG-")) and any(each.startswith(name) for each in identifiers)


def _read(nvml: Any, index: int) -> NvmlDevice:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def maybe(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except nvml.NVMLError:
            return None

    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    rates = maybe(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    power_mw = maybe(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    limit_mw = maybe(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    default_mw = maybe(lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle))
    return NvmlDevice(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_total_bytes=int(memory.total),
        memory_used_bytes=int(memory.used),
        compute_capability=maybe(lambda: tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))),
        utilization_percent=float(rates.gpu) if rates else None,
        memory_utilization_percent=float(rates.memory) if rates else None,
        power_w=power_mw / 1000 if power_mw is not None else None,
        power_limit_w=limit_mw / 1000 if limit_mw is not None else None,
        power_limit_default_w=default_mw / 1000 if default_mw is not None else None,
        temperature_c=maybe(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        sm_clock_mhz=maybe(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        memory_clock_mhz=maybe(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        throttle_reasons=maybe(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        energy_mj=maybe(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)),
        process_memory_bytes=_process_memory(nvml, handle),
        instances=tuple(_instances(nvml, handle)),
    )


def _instances(nvml: Any, handle: Any) -> Iterator[MigInstance]:
    """The MIG instances of a device; none where it is not split, cannot be, or does not tell."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
        slots = nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if current == nvml.NVML_DEVICE_MIG_ENABLE else 0
    except nvml.NVMLError:
        return
    for index in range(slots):
        with contextlib.suppress(nvml.NVMLError):  # an empty slot
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            memory = nvml.nvmlDeviceGetMemoryInfo(instance)
            yield MigInstance(
                index=index,
                uuid=_text(nvml.nvmlDeviceGetUUID(instance)),
                name=_text(nvml.nvmlDeviceGetName(instance)),
                memory_total_bytes=int(memory.total),
                memory_used_bytes=int(memory.used),
                process_memory_bytes=_process_memory(nvml, instance),
            )


def _process_memory(nvml: Any, handle: Any) -> dict[int, int]:
    """Device bytes by process id; empty where a container hides processes."""
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return {}
    return {process.pid: process.usedGpuMemory for process in processes if process.usedGpuMemory}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
