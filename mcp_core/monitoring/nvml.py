"""NVIDIA devices through NVML, one reading at a time; a counter that a device lacks is None.

This file does not know about time series (``sampler.py``) or workers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

__all__ = ["NvmlDevice", "nvml_reason", "read_devices"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NvmlDevice:
    """One reading of one device. Bytes, watts, degrees Celsius, MHz, percent, millijoules."""

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


def read_devices(nvml: Any = pynvml) -> tuple[str | None, tuple[NvmlDevice, ...]]:
    """Driver version and one reading per device; ``(None, ())`` where there is no NVIDIA driver.

    ``nvml`` is the pynvml module or a stand-in with its functions (``monitoring.fake_nvml.FakeNvml``).
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None, ()
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        return driver, tuple(_readings(nvml))
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
        temperature_c=maybe(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        sm_clock_mhz=maybe(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        memory_clock_mhz=maybe(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        throttle_reasons=maybe(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        energy_mj=maybe(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)),
        process_memory_bytes=_process_memory(nvml, handle),
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
