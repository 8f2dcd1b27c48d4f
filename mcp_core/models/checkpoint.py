"""A checkpoint's tensors, each read from disk only when it is asked for.

Tensors are read, not mapped: a mapped file would count as the process's memory or not, as the kernel likes.
This file does not know which files a model has (``headers.py``) or what it does with them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Protocol

import torch
from safetensors import safe_open

__all__ = ["ByteCount", "LazyTensor", "counted", "open_tensors"]


class LazyTensor(Protocol):
    """Something that becomes a tensor as ``lazy[...]``; what transformers asks of a checkpoint's entry."""

    def __getitem__(self, index: EllipsisType, /) -> torch.Tensor: ...

    def get_dtype(self) -> str:
        """Safetensors' name of its type: tells floating-point weights from packed ones before they are read."""
        ...


class ByteCount:
    """Bytes that have arrived, reported as a fraction whenever it grew by a hundredth; from any thread."""

    def __init__(self, total_bytes: int, on_fraction: Callable[[float], None]) -> None:
        self._total = max(1, total_bytes)
        self._on_fraction = on_fraction
        self._done = 0
        self._reported = 0.0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes that have arrived."""
        with self._lock:
            self._done += count
            fraction = min(1.0, self._done / self._total)
            if fraction - self._reported >= 0.01:
                self._reported = fraction
                self._on_fraction(fraction)


@dataclass(frozen=True, slots=True)
class _Counted:
    lazy: LazyTensor
    arrived: ByteCount

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        tensor = self.lazy[index]
        self.arrived.add(tensor.nbytes)
        return tensor

    def get_dtype(self) -> str:
        return self.lazy.get_dtype()


def counted(tensors: Mapping[str, LazyTensor], arrived: ByteCount) -> dict[str, LazyTensor]:
    """The same tensors; each adds its bytes to ``arrived`` when it has been read."""
    return {name: _Counted(lazy, arrived) for name, lazy in tensors.items()}


@contextmanager
def open_tensors(files: tuple[Path, ...]) -> Iterator[dict[str, LazyTensor]]:
    """Every tensor of these files by name, unread; valid inside the ``with``. Raises SafetensorError, OSError."""
    with ExitStack() as stack:
        tensors: dict[str, LazyTensor] = {}
        for path in files:
            file = stack.enter_context(safe_open(path, framework="pt", device="cpu", backend="pread"))
            tensors |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        yield tensors
