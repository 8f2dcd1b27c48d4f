from __future__ import annotations

import gc
import json
import subprocess
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


# In a process of its own: the test run's process holds freed memory that settling gives back.
_SCENE = """
import json

from mcp_core.serving.worker_memory import WorkerMemory

MIB = 1024**2


def touch(size):
    held = bytearray(size)
    held[::4096] = b"x" * len(held[::4096])


memory = WorkerMemory()
touch(96 * MIB)
memory.settle(weights_bytes=5, kv_bytes_per_token=7)
touch(48 * MIB)
first = memory.read()
memory.reset_peaks()
print(json.dumps([first.model_dump(), memory.read().model_dump()]))
"""


def test_loading_s_peak_and_serving_s_peak_are_told_apart() -> None:
    result = subprocess.run([sys.executable, "-c", _SCENE], check=True, capture_output=True, text=True)
    first, later = json.loads(result.stdout)
    assert 90 * MIB < first["load_peak_bytes"] - first["baseline_bytes"] < 120 * MIB
    assert 40 * MIB < first["peak_bytes"] < 70 * MIB
    assert first["process_peak_bytes"] == first["baseline_bytes"] + first["peak_bytes"]
    assert (first["weights_bytes"], first["kv_bytes_per_token"]) == (5, 7)
    assert first["device_reserved_peak_bytes"] is None
    assert later["peak_bytes"] < first["peak_bytes"] - 30 * MIB
    assert later["load_peak_bytes"] == first["load_peak_bytes"]


@pytest.mark.parametrize(("context", "peak"), [(300 * MIB, 320 * MIB), (None, None)])
def test_on_a_device_the_peak_is_the_pool_and_the_context(context: int | None, peak: int | None) -> None:
    device = Device(context)
    memory = WorkerMemory(device)
    memory.settle(weights_bytes=5, kv_bytes_per_token=7)
    figures = memory.read()
    assert figures.peak_bytes == peak
    assert (figures.device_allocated_peak_bytes, figures.device_reserved_peak_bytes) == (10 * MIB, 20 * MIB)
    assert device.resets == 1


def test_a_collection_while_serving_looks_at_nothing_that_was_there_before() -> None:
    memory, before = WorkerMemory(), gc.get_freeze_count()
    made = [[number] for number in range(5_000)]  # as a change of the batching mode would
    try:
        memory.reset_peaks()
        assert gc.get_freeze_count() >= before + len(made)
        assert not any(found is made[0] for found in gc.get_objects())
    finally:
        gc.unfreeze()


def test_what_was_not_measured_yet_is_none() -> None:
    figures = WorkerMemory().read()
    assert figures.load_peak_bytes is None
    assert figures.weights_bytes is None
    assert isinstance(figures, Memory)
