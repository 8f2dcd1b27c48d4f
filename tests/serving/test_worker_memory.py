from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from mcp_core.results import Memory
from mcp_core.serving.worker_memory import WorkerMemory

MIB = 1024**2
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the counters are Linux's")


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    import gc

    yield
    gc.unfreeze()


class Device:
    """Counters with known values."""

    def __init__(self, context: int | None) -> None:
        self.context = context
        self.resets = 0

    def allocated_peak_bytes(self) -> int:
        return 10 * MIB

    def reserved_peak_bytes(self) -> int:
        return 20 * MIB

    def context_bytes(self) -> int | None:
        return self.context

    def reset(self) -> None:
        self.resets += 1


def touch(size: int) -> bytearray:
    held = bytearray(size)
    held[::4096] = b"x" * len(held[::4096])
    return held


def test_loading_s_peak_and_serving_s_peak_are_told_apart() -> None:
    memory = WorkerMemory()
    loading = touch(96 * MIB)
    del loading
    memory.settle(weights_bytes=5, kv_bytes_per_token=7)
    serving = touch(32 * MIB)
    del serving
    figures = memory.read()
    assert figures.baseline_bytes is not None
    assert figures.load_peak_bytes is not None
    assert figures.peak_bytes is not None
    assert 90 * MIB < figures.load_peak_bytes - figures.baseline_bytes < 120 * MIB
    assert 25 * MIB < figures.peak_bytes < 60 * MIB
    assert figures.process_peak_bytes == figures.baseline_bytes + figures.peak_bytes
    assert (figures.weights_bytes, figures.kv_bytes_per_token) == (5, 7)
    assert figures.device_reserved_peak_bytes is None
    memory.reset_peaks()
    later = memory.read()
    assert later.peak_bytes is not None
    assert later.peak_bytes < figures.peak_bytes - 20 * MIB
    assert later.load_peak_bytes == figures.load_peak_bytes


@pytest.mark.parametrize(("context", "peak"), [(300 * MIB, 320 * MIB), (None, None)])
def test_on_a_device_the_peak_is_the_pool_and_the_context(context: int | None, peak: int | None) -> None:
    device = Device(context)
    memory = WorkerMemory(device)
    memory.settle(weights_bytes=5, kv_bytes_per_token=7)
    figures = memory.read()
    assert figures.peak_bytes == peak
    assert (figures.device_allocated_peak_bytes, figures.device_reserved_peak_bytes) == (10 * MIB, 20 * MIB)
    assert device.resets == 1


def test_what_was_not_measured_yet_is_none() -> None:
    figures = WorkerMemory().read()
    assert figures.load_peak_bytes is None
    assert figures.weights_bytes is None
    assert isinstance(figures, Memory)
