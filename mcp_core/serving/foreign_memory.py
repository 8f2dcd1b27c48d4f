"""ForeignMemory: memory of a server that says little about it, from outside: its processes, and the device.

This file does not know which server it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from mcp_core.hardware import Device
from mcp_core.monitoring.nvml import NvmlDevice, read_devices
from mcp_core.results import Memory
from mcp_core.serving.process_group import members, resident_bytes

__all__ = ["ForeignMemory"]


class ForeignMemory:
    """Peaks of what ``look`` saw. ``device`` is the one that the server runs on.

    Where a container hides which process holds device memory, all that was taken since this was made counts.
    """

    def __init__(self, device: Device, read: Callable[[], NvmlDevice | None] | None = None) -> None:
        self._read = read or (lambda: _read(device.uuid))
        before = self._read()
        self._used_before = before.memory_used_bytes if before else 0
        self._lock = threading.Lock()  # one thread looks, another resets
        self._host_peak = 0
        self._load_peak: int | None = None
        self._device_peak: int | None = None

    def look(self) -> None:
        """Read once; blocks for milliseconds."""
        processes = members()
        resident, held = resident_bytes(processes), self._held(frozenset(each.pid for each in processes))
        with self._lock:
            self._host_peak = max(self._host_peak, resident)
            if held is not None:
                self._device_peak = max(self._device_peak or 0, held)

    def loaded(self) -> None:
        """It answers: what was highest until now belongs to loading."""
        self.look()
        self._load_peak = self._host_peak

    def reset_peaks(self) -> None:
        """Peaks count from now."""
        with self._lock:
            self._host_peak, self._device_peak = 0, None
        self.look()

    def memory(self, weights_bytes: int | None, kv_bytes_per_token: int | None) -> Memory:
        """The figures, with what the server's log and the model's config say."""
        return Memory(
            weights_bytes=weights_bytes,
            load_peak_bytes=self._load_peak,
            process_peak_bytes=self._host_peak or None,
            peak_bytes=self._device_peak,
            device_reserved_peak_bytes=self._device_peak,
            kv_bytes_per_token=kv_bytes_per_token,
        )

    def _held(self, pids: frozenset[int]) -> int | None:
        device = self._read()
        if device is None:
            return None
        own = [used for pid, used in device.process_memory_bytes.items() if pid in pids]
        return sum(own) if own else max(0, device.memory_used_bytes - self._used_before)


def _read(uuid: str | None) -> NvmlDevice | None:
    _, devices = read_devices()
    return next((each for each in devices if each.uuid == uuid), None)
