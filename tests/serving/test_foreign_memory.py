from __future__ import annotations

from collections.abc import Callable

import pytest

from mcp_core.hardware import Device
from mcp_core.monitoring.fake_nvml import FakeDevice, FakeNvml
from mcp_core.monitoring.nvml import NvmlDevice, read_devices
from mcp_core.serving import foreign_memory
from mcp_core.serving.foreign_memory import ForeignMemory

GB = 10**9
DEVICE = Device(id="cuda:0", kind="cuda", name="X", memory_total_bytes=80 * GB, memory_free_bytes=79 * GB)


def reader(*used: int) -> Callable[[], NvmlDevice | None]:
    """One reading after the other; a container hides whose memory it is."""
    nvml = FakeNvml((FakeDevice(memory_used_bytes=used, processes=(None,)),))
    return lambda: read_devices(nvml)[1][0]


def test_peaks_of_loading_and_since_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([3 * GB, 2 * GB, 1 * GB, 2 * GB])
    monkeypatch.setattr(foreign_memory, "resident_bytes", lambda _: next(held))
    memory = ForeignMemory(DEVICE, reader(1 * GB, 9 * GB, 7 * GB, 4 * GB, 5 * GB))
    memory.look()
    memory.loaded()
    before = memory.memory(2 * GB, 100)
    assert (before.load_peak_bytes, before.process_peak_bytes, before.peak_bytes) == (3 * GB, 3 * GB, 8 * GB)
    assert (before.weights_bytes, before.kv_bytes_per_token) == (2 * GB, 100)
    memory.reset_peaks()
    memory.look()
    after = memory.memory(None, None)
    assert (after.load_peak_bytes, after.process_peak_bytes, after.peak_bytes) == (3 * GB, 2 * GB, 4 * GB)


def test_a_reset_counts_while_another_thread_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([9 * GB, 1 * GB, 2 * GB])

    def resident(_: object) -> int:
        found = next(held)
        if found == 1 * GB:
            memory.reset_peaks()  # which looks, too
        return found

    monkeypatch.setattr(foreign_memory, "resident_bytes", resident)
    memory = ForeignMemory(DEVICE, reader(0))
    memory.look()
    memory.look()
    assert memory.memory(None, None).process_peak_bytes == 2 * GB


def test_no_reading_of_the_device_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_memory, "resident_bytes", lambda _: 0)
    memory = ForeignMemory(DEVICE, lambda: None)
    memory.look()
    assert memory.memory(None, None).peak_bytes is None
    assert memory.memory(None, None).process_peak_bytes is None
