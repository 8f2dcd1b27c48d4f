"""A stand-in for the pynvml module with scripted devices, for tests and for machines without an NVIDIA device.

This file does not know who reads it; it has the functions that ``nvml.py`` calls and no others.
"""

# ruff: noqa: N802, D102 - the functions have NVML's own names and meanings
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TypeVar

__all__ = ["FakeDevice", "FakeInstance", "FakeNvml", "FakeNvmlError"]

T = TypeVar("T")
Series = Sequence[T | None]


class FakeNvmlError(Exception):
    """As pynvml.NVMLError."""


@dataclass(frozen=True)
class FakeInstance:
    """A part of a split device; ``processes`` as of a device."""

    name: str = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    uuid: str = "MIG-00000000-0000-0000-0000-000000000000"
    memory_total_bytes: int = 10_468_982_784
    memory_used_bytes: int = 12_582_912
    processes: dict[int, int] | None = None


@dataclass(frozen=True)
class FakeDevice:
    """One device. Each series gives one value a reading, its last one for ever; None is "not supported".

    ``processes`` maps a process id to its device bytes; None hides all processes, as a container does.
    ``instances`` are its MIG slots, None in it an empty one; None for a device that cannot be split.
    """

    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-00000000-0000-0000-0000-000000000000"
    memory_total_bytes: int = 85_520_809_984
    compute_capability: tuple[int, int] = (9, 0)
    memory_used_bytes: Series[int] = (1_000_000_000,)
    utilization_percent: Series[int] = (0,)
    memory_utilization_percent: Series[int] = (0,)
    power_mw: Series[int] = (70_000,)
    power_limit_mw: Series[int] = (700_000,)
    power_limit_default_mw: Series[int] = (700_000,)
    temperature_c: Series[int] = (30,)
    sm_clock_mhz: Series[int] = (1_980,)
    memory_clock_mhz: Series[int] = (2_619,)
    throttle_reasons: Series[int] = (0,)
    energy_mj: Series[int] = (0,)
    processes: Series[dict[int, int]] = ({},)
    instances: tuple[FakeInstance | None, ...] | None = None


@dataclass
class _Handle:
    """A device and which of its readings is being taken."""

    index: int
    device: FakeDevice
    reading: int = -1

    def value(self, series: Series[T]) -> T:
        value = series[min(self.reading, len(series) - 1)]
        if value is None:
            raise FakeNvmlError("Not Supported")
        return value


@dataclass
class FakeNvml:
    """The module object. ``reason`` set makes nvmlInit fail with it, as on a machine without a driver.

    Getting a device's handle begins its next reading. ``users`` counts nvmlInit less nvmlShutdown.
    """

    devices: Sequence[FakeDevice] = ()
    reason: str | None = None
    driver: str = "580.95.05"
    users: int = 0
    _handles: list[_Handle] = field(default_factory=list)

    NVMLError = FakeNvmlError
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_DEVICE_MIG_ENABLE = 1

    def __post_init__(self) -> None:
        self._handles = [_Handle(index, device) for index, device in enumerate(self.devices)]

    def nvmlInit(self) -> None:
        if self.reason is not None:
            raise FakeNvmlError(self.reason)
        self.users += 1

    def nvmlShutdown(self) -> None:
        self.users -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlDeviceGetCount(self) -> int:
        if self.users <= 0:
            raise FakeNvmlError("Uninitialized")
        return len(self._handles)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> _Handle:
        handle = self._handles[index]
        handle.reading += 1
        return handle

    def nvmlDeviceGetName(self, handle: _Handle | FakeInstance) -> str:
        return _what(handle).name

    def nvmlDeviceGetUUID(self, handle: _Handle | FakeInstance) -> str:
        return _what(handle).uuid

    def nvmlDeviceGetMemoryInfo(self, handle: _Handle | FakeInstance) -> SimpleNamespace:
        total = _what(handle).memory_total_bytes
        if isinstance(handle, FakeInstance):
            used = handle.memory_used_bytes
        else:
            used = handle.value(handle.device.memory_used_bytes)
        return SimpleNamespace(total=total, used=used, free=total - used)

    def nvmlDeviceGetMigMode(self, handle: _Handle) -> list[int]:
        if handle.device.instances is None:
            raise FakeNvmlError("Not Supported")
        mode = int(bool(handle.device.instances))
        return [mode, mode]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: _Handle) -> int:
        return len(handle.device.instances or ())

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: _Handle, index: int) -> FakeInstance:
        instance = (handle.device.instances or ())[index]
        if instance is None:
            raise FakeNvmlError("Not Found")
        return instance

    def nvmlDeviceGetCudaComputeCapability(self, handle: _Handle) -> tuple[int, int]:
        return handle.device.compute_capability

    def nvmlDeviceGetUtilizationRates(self, handle: _Handle) -> SimpleNamespace:
        device = handle.device
        return SimpleNamespace(
            gpu=handle.value(device.utilization_percent), memory=handle.value(device.memory_utilization_percent)
        )

    def nvmlDeviceGetPowerUsage(self, handle: _Handle) -> int:
        return handle.value(handle.device.power_mw)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: _Handle) -> int:
        return handle.value(handle.device.power_limit_mw)

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: _Handle) -> int:
        return handle.value(handle.device.power_limit_default_mw)

    def nvmlDeviceGetTemperature(self, handle: _Handle, sensor: int) -> int:
        return handle.value(handle.device.temperature_c)

    def nvmlDeviceGetClockInfo(self, handle: _Handle, clock: int) -> int:
        device = handle.device
        return handle.value(device.sm_clock_mhz if clock == self.NVML_CLOCK_SM else device.memory_clock_mhz)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: _Handle) -> int:
        return handle.value(handle.device.throttle_reasons)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: _Handle) -> int:
        return handle.value(handle.device.energy_mj)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: _Handle | FakeInstance) -> list[SimpleNamespace]:
        if isinstance(handle, FakeInstance):
            processes = handle.processes or {}
        else:
            processes = handle.value(handle.device.processes)
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes.items()]


def _what(handle: _Handle | FakeInstance) -> FakeDevice | FakeInstance:
    return handle if isinstance(handle, FakeInstance) else handle.device
