"""WorkerMemory: what a worker's memory figures are and when each is read, from imports to serving.

This file does not know the model or torch: the device's own counters come from outside (``DeviceCounters``).
"""

from __future__ import annotations

import gc
from typing import Protocol

from mcp_core.results import Memory
from mcp_core.serving import process_memory

__all__ = ["DeviceCounters", "WorkerMemory"]


class DeviceCounters(Protocol):
    """Peaks of a device's allocator since ``reset``, bytes, and what the process takes beside it."""

    def allocated_peak_bytes(self) -> int:
        """Of tensors."""

    def reserved_peak_bytes(self) -> int:
        """Of the allocator's pool."""

    def context_bytes(self) -> int | None:
        """The process's driver context, kernels included; None where it cannot be seen."""

    def reset(self) -> None:
        """Count peaks from now."""


class WorkerMemory:
    """Made after imports, before loading; ``settle`` when loaded and warm; then ``read`` at any time."""

    def __init__(self, device: DeviceCounters | None = None) -> None:
        now = process_memory.read_memory()
        self._baseline_bytes = now.resident_bytes if now else None
        self._load_peak_bytes: int | None = None
        self._weights_bytes: int | None = None
        self._kv_bytes_per_token: int | None = None
        self._device = device
        self._context_bytes: int | None = None

    def settle(self, weights_bytes: int, kv_bytes_per_token: int) -> None:
        """Note the peak of loading, give back what loading left, and count the serving peak from here."""
        self._load_peak_bytes = _peak()
        self._weights_bytes = weights_bytes
        self._kv_bytes_per_token = kv_bytes_per_token
        _settle_objects()
        process_memory.trim()
        if self._device is not None:
            self._context_bytes = self._device.context_bytes()
        self.reset_peaks()

    def reset_peaks(self) -> None:
        """Count the serving peaks from now, nothing that came before being in the way of what is served."""
        _settle_objects()
        process_memory.reset_peak()
        if self._device is not None:
            self._device.reset()

    def read(self) -> Memory:
        """Every figure as of now."""
        peak = _peak()
        reserved = self._device.reserved_peak_bytes() if self._device else None
        return Memory(
            weights_bytes=self._weights_bytes,
            baseline_bytes=self._baseline_bytes,
            load_peak_bytes=self._load_peak_bytes,
            process_peak_bytes=peak,
            peak_bytes=_sum(peak, self._baseline_bytes, -1)
            if self._device is None
            else _sum(reserved, self._context_bytes, 1),
            device_allocated_peak_bytes=self._device.allocated_peak_bytes() if self._device else None,
            device_reserved_peak_bytes=reserved,
            kv_bytes_per_token=self._kv_bytes_per_token,
        )


def _settle_objects() -> None:
    """What there is stays: later collections need not look at it.

    A pass over what compiling made (700,000 objects) stops every thread for 1.2 s, in the middle of a Run.
    """
    gc.collect()
    gc.freeze()


def _peak() -> int | None:
    memory = process_memory.read_memory()
    return memory.peak_bytes if memory else None


def _sum(one: int | None, other: int | None, sign: int) -> int | None:
    """None where either was not measured."""
    return None if one is None or other is None else one + sign * other
