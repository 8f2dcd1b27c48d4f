"""Moving small tensors between host and device without stopping either. Knows nothing of what they mean."""

from __future__ import annotations

import torch

__all__ = ["Fetched", "fill", "to_device"]


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host's ``values`` on ``device``; the host goes on while they travel."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def fill(place: torch.Tensor, values: torch.Tensor) -> None:
    """A host's ``values`` into ``place``, which stays where it is; the host goes on while they travel."""
    place.copy_(values.pin_memory() if place.is_cuda else values, non_blocking=True)


class Fetched:
    """A device's values on their way to the host, as they are at this point of the device's work."""

    def __init__(self, values: torch.Tensor) -> None:
        self._host = values
        self._there: torch.cuda.Event | None = None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record()

    def wait(self) -> list[int]:
        """The values, once they are there."""
        if self._there is not None:
            self._there.synchronize()
        values: list[int] = self._host.tolist()
        return values
