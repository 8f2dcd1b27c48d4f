"""CudaCounters: torch's allocator on one CUDA device now and at its peak, its snapshot, and what the process takes
there beside it.

This file does not know what the memory is used for.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from mcp_core.memory_readings import MemoryReading
from mcp_core.monitoring.nvml import NvmlDevice, read_devices

__all__ = ["CudaCounters"]

# Allocations and frees that a snapshot holds: a few hundred bytes each.
_SNAPSHOT_EVENTS = 200_000


class CudaCounters:
    """Of the device ``cuda:N``. Made before anything touches the device."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        before = self._by_driver()
        self._used_before_bytes = before.memory_used_bytes if before else None

    def allocated_peak_bytes(self) -> int:
        """Of tensors."""
        return torch.cuda.max_memory_allocated(self._device)

    def reserved_peak_bytes(self) -> int:
        """Of the allocator's pool."""
        return torch.cuda.max_memory_reserved(self._device)

    def context_bytes(self) -> int | None:
        """The driver's context and kernels: what NVML says of this process, less the pool.

        Where a container hides processes it is the device's growth since this was made, less the pool.
        """
        now = self._by_driver()
        if now is None or self._used_before_bytes is None:
            return None
        used = now.process_memory_bytes.get(os.getpid(), now.memory_used_bytes - self._used_before_bytes)
        return max(0, used - torch.cuda.memory_reserved(self._device))

    def read(self) -> MemoryReading:
        """The allocator and the whole device now; nothing before the first allocation, which makes the context."""
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return MemoryReading()
        free, total = torch.cuda.mem_get_info(self._device)
        return MemoryReading(
            allocated_bytes=torch.cuda.memory_allocated(self._device),
            reserved_bytes=torch.cuda.memory_reserved(self._device),
            device_used_bytes=total - free,
        )

    def snapshot(self, seconds: float, folder: Path) -> Path:
        """Record allocations for so long, and write torch's snapshot, for pytorch.org/memory_viz."""
        path = folder / f"memory-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.pickle"
        torch.cuda.memory._record_memory_history(max_entries=_SNAPSHOT_EVENTS)  # noqa: SLF001 - no public name
        try:
            time.sleep(seconds)
            torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]  # noqa: SLF001
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)  # noqa: SLF001
        return path

    def reset(self) -> None:
        """Count peaks from now; cached blocks that nothing uses go back to the device."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def _by_driver(self) -> NvmlDevice | None:
        _, devices = read_devices()
        return next((device for device in devices if device.index == self._device.index), None)
