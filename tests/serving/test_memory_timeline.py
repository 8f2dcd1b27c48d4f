from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from mcp_core.generation import TokenEvent
from mcp_core.memory_readings import MemoryPoint, MemoryReading
from mcp_core.serving.memory_timeline import MemoryRecorder, ServingPhases, thin

MIB = 2**20


class Clock:
    """Time that is set by hand, s."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Device:
    """Counters that are set by hand."""

    reserved_bytes = 0

    def read(self) -> MemoryReading:
        return MemoryReading(allocated_bytes=7, reserved_bytes=self.reserved_bytes, device_used_bytes=9)


def phases(recorder: MemoryRecorder) -> dict[str, float]:
    return {phase.name: phase.seconds for phase in recorder.timeline().phases}


def test_a_phase_lasts_what_it_lasts() -> None:
    clock = Clock()
    recorder = MemoryRecorder(clock=clock)
    for name, seconds in (("load", 2.5), ("warm-up", 4.0), ("load", 0.5), ("check", 3.0)):
        clock.now_s += seconds
        recorder.phase(name)
    clock.now_s += 1.25
    assert phases(recorder) == {"imports": 2.5, "load": 4.0 + 3.0, "warm-up": 0.5, "check": 1.25}


def test_a_real_sleep_and_regular_looks() -> None:
    recorder = MemoryRecorder(interval_s=0.02)
    recorder.start()
    recorder.phase("load")
    time.sleep(0.3)
    recorder.phase("check")
    recorder.stop()
    timeline = recorder.timeline()
    load = next(phase for phase in timeline.phases if phase.name == "load")
    assert 0.3 <= load.seconds < 0.6
    looks = [point for point in timeline.points if point.phase == "load"]
    assert len(looks) > 4
    assert all(point.resident_bytes > 10 * MIB for point in looks)


# In a process of its own: nothing else allocates there.
_SCENE = """
import json
import time

from mcp_core.serving.memory_timeline import MemoryRecorder

recorder = MemoryRecorder(interval_s=0.01)
recorder.start()
recorder.phase("load")
time.sleep(0.05)
recorder.phase("quantize")
held = bytearray(64 * 2**20)
held[::4096] = b"x" * len(held[::4096])
time.sleep(0.1)
del held
recorder.phase("check")
recorder.stop()
print(json.dumps({phase.name: phase.resident_bytes for phase in recorder.timeline().phases}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the counters are Linux's")
def test_a_known_block_shows_in_its_phase_only() -> None:
    result = subprocess.run([sys.executable, "-c", _SCENE], check=True, capture_output=True, text=True)
    resident = json.loads(result.stdout)
    assert resident["quantize"] - resident["load"] == pytest.approx(64 * MIB, rel=0.05)
    assert resident["check"] - resident["load"] < 16 * MIB


def test_a_device_s_pool_is_kept_at_its_highest() -> None:
    clock, device = Clock(), Device()
    recorder = MemoryRecorder(clock=clock)
    recorder.watch(device)
    for reserved in (5 * MIB, 80 * MIB, 20 * MIB):
        device.reserved_bytes = reserved
        clock.now_s += 1
        recorder.timeline()
    (only,) = recorder.timeline().phases
    assert (only.reserved_bytes, only.allocated_bytes, only.device_used_bytes) == (80 * MIB, 7, 9)
    assert only.samples == 4


def test_serving_cannot_push_loading_out() -> None:
    clock = Clock()
    recorder = MemoryRecorder(clock=clock)
    recorder.phase("load")
    recorder.served(lambda: None)
    for _ in range(3000):
        clock.now_s += 1
        recorder.timeline(1)
    points = recorder.timeline().points
    assert [point.phase for point in points[:2]] == ["imports", "load"]
    assert len(points) == 2 + 2400
    assert len(recorder.timeline(50).points) <= 2 + 50


def test_prefill_ends_with_the_first_token_and_decode_with_the_last_reply() -> None:
    clock, told = Clock(), []
    recorder = MemoryRecorder(clock=clock)
    serving = ServingPhases(recorder, told.append)
    running = True
    serving.begin(lambda: running)

    def after(seconds: float, *events: TokenEvent) -> None:
        clock.now_s += seconds
        serving(list(events)) if events else serving.look()

    after(10.0)  # a request came, as a look finds out
    after(2.0, TokenEvent("a", 0.0, token=1))
    after(3.0, TokenEvent("a", 0.0, token=1), TokenEvent("b", 0.0, token=1))
    after(4.0, TokenEvent("a", 0.0, token=1, finish="length"))
    running = False
    after(5.0, TokenEvent("b", 0.0, token=1, finish="stop"))
    clock.now_s += 6.0
    seconds = phases(recorder)
    assert seconds == {"imports": 0.0, "idle": 10.0 + 6.0, "prefill": 2.0, "decode": 3.0 + 4.0 + 5.0}
    assert [len(events) for events in told] == [1, 2, 1, 1]


def test_a_request_behind_another_is_prefilled_at_once() -> None:
    clock = Clock()
    recorder = MemoryRecorder(clock=clock)
    serving = ServingPhases(recorder, lambda events: None)
    serving.begin(lambda: True)
    serving([TokenEvent("a", 0.0, token=1)])
    serving([TokenEvent("a", 0.0, token=1, finish="length")])
    clock.now_s += 2.0
    assert phases(recorder)["prefill"] == 2.0


def test_looking_costs_at_most_a_hundredth_of_a_core() -> None:
    recorder = MemoryRecorder()
    began = time.thread_time()
    for _ in range(200):
        recorder.timeline(1)
    a_look_s = (time.thread_time() - began) / 200
    assert a_look_s * 4 < 0.01


def test_thinned_points_keep_the_highest() -> None:
    sizes = (1, 9, 2, 3, 4)
    points = [MemoryPoint(at_s=float(at), phase="load", resident_bytes=size) for at, size in enumerate(sizes)]
    assert [point.resident_bytes for point in thin(points, 2)] == [9, 4]
    assert thin(points, 9) == points
