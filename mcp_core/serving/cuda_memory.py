"""CudaCounters: peaks of torch's allocator on one CUDA device, and what the process takes there beside it.

This file does not know what the memory is used for.
"""

from __future__ import annotations

import os

import torch

from mcp_core.monitoring.nvml import NvmlDevice, read_devices

__all__ = ["CudaCounters"]


class CudaCounters:
    """Of the device ``cuda:N``. Made before anything touches the device."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        before = self._read()
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
        now = self._read()
        if now is None or self._used_before_bytes is None:
            return None
        used = now.process_memory_bytes.get(os.getpid(), now.memory_used_bytes - self._used_before_bytes)
        return max(0, used - torch.cuda.memory_reserved(self._device))

    def reset(self) -> None:
        """Count peaks from now; cached blocks that nothing uses go back to the device."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def _read(self) -> NvmlDevice | None:
        _, devices = read_devices()
        return next((device for device in devices if device.index == self._device.index), None)
