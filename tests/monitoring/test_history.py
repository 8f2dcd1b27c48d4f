"""history: planted series roll up to known means, extremes and sums, and no memory grows."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import pytest

from mcp_core.generation import EngineStats
from mcp_core.monitoring.fake_nvml import FakeDevice, FakeInstance, FakeNvml
from mcp_core.monitoring.history import History, Ring
from mcp_core.monitoring.sample import ProcessProbe, WorkerProbe
from mcp_core.monitoring.series import Readings, readings_of
from mcp_core.monitoring.taker import Taker

DAY_S = 86_400
BEGAN_S = 1_700_000_040.0  # a whole minute


def ramp(seconds: int, history: History | None = None) -> History:
    """A gauge that is the number of its second, a counter that grows by 3 in each."""
    history = history or History()
    for at in range(seconds):
        history.add(BEGAN_S + at, Readings({"host.ramp": float(at)}, {"host.steps": 3.0}, {"host": "Host"}))
    return history


def test_the_last_minutes_are_there_second_by_second():
    window = ramp(120).window(BEGAN_S + 60, BEGAN_S + 119)
    assert window.span_s == 1
    assert window.mean("host.ramp") == [(BEGAN_S + at, float(at)) for at in range(60, 120)]
    assert window.rate("host.steps")[5] == (BEGAN_S + 65, 3.0)
    assert window.labels == {"host": "Host"}


@pytest.mark.parametrize(("span_s", "range_s"), [(10, 3600), (60, DAY_S)])
def test_a_ramp_rolls_up_to_its_known_means(span_s, range_s):
    window = ramp(7200).window(BEGAN_S + 7200 - range_s, BEGAN_S + 7200)
    assert window.span_s == span_s
    rows = window.rows
    assert len(rows) == min(range_s, 7200) / span_s
    for (at_s, mean), (_, low), (_, high), (_, added) in zip(
        window.mean("host.ramp"),
        window.low("host.ramp"),
        window.high("host.ramp"),
        window.added("host.steps"),
        strict=True,
    ):
        first = at_s - BEGAN_S - (span_s - 1) / 2  # the ramp's value is its time, so the mean is the middle
        assert mean == pytest.approx(at_s - BEGAN_S)
        assert (low, high) == (first, first + span_s - 1)
        assert added == 3 * span_s
    assert {rate for _, rate in window.rate("host.steps")} == {3.0}
    assert window.total("host.steps") == 3 * span_s * len(rows)


def test_what_has_not_rolled_up_yet_is_a_row_of_its_own():
    newest = ramp(3605).window(BEGAN_S, BEGAN_S + 3605).rows[-1]
    assert newest.seconds == 5
    assert newest.at_s == BEGAN_S + 3602


def test_a_gap_stays_a_gap_and_does_not_pull_means_down():
    history = History((Ring(1, 60), Ring(10, 600)))
    for at in range(20):
        value = None if at % 2 else 8.0
        history.add(BEGAN_S + at, Readings({"a": value, "b": None}, {"c": value}))
    window = history.window(BEGAN_S, BEGAN_S + 20, most_rows=5)
    assert [value for _, value in window.mean("a")] == [8.0, 8.0]
    assert [value for _, value in window.added("c")] == [40.0, 40.0]
    assert [value for _, value in window.mean("b")] == [None, None]
    assert [value for _, value in window.mean("never heard of")] == [None, None]
    assert window.total("d") is None


def test_a_machine_that_slept_does_not_stretch_a_sample_over_its_night():
    history = History()
    history.add(BEGAN_S, Readings({}, {"c": 1.0}))
    history.add(BEGAN_S + 3600, Readings({}, {"c": 5.0}))
    assert [value for _, value in history.window(BEGAN_S, BEGAN_S + 3600, 1e9).rate("c")] == [1.0, 5.0]


def test_old_seconds_are_dropped_and_their_minutes_stay():
    history = ramp(2 * 3600)
    old = history.window(BEGAN_S, BEGAN_S + 300)
    assert old.span_s == 10  # the hour of seconds begins later
    assert old.mean("host.ramp")[0] == (BEGAN_S + 4.5, 4.5)


def test_workers_that_come_and_go_leave_gaps_in_one_anothers_series():
    history = History()
    for at in range(10):
        name = "one.x" if at < 5 else "two.x"
        history.add(BEGAN_S + at, Readings({name: float(at)}, {}, {name.split(".", maxsplit=1)[0]: name}))
    window = history.window(BEGAN_S, BEGAN_S + 10)
    assert [value for _, value in window.mean("one.x")] == [0, 1, 2, 3, 4] + [None] * 5
    assert window.gauges == ("one.x", "two.x")


def test_a_day_takes_little_memory():
    """60 series, as with one worker and one device: what is added after the rings are full is given back."""
    gauges = {f"scope.{name}": 1.0 for name in range(50)}
    counters = {f"scope.{name}": 1.0 for name in range(10)}
    tracemalloc.start()
    history = History((Ring(1, 360), Ring(10, 2160), Ring(60, 8640)))  # a tenth of the real one
    for at in range(9000):
        history.add(BEGAN_S + at, Readings(gauges, counters))
        if at % 50 == 0:
            history.window(BEGAN_S, BEGAN_S + at)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 1.5e6


def test_energy_is_power_times_time(monkeypatch):
    """A device at a steady 300 W whose counter says so, and one without a counter, whose power is multiplied.

    By a clock of our own: between two real readings others may run, and neither knows when the other was.
    """
    at_s = BEGAN_S
    clock = SimpleNamespace(time=lambda: at_s, monotonic=lambda: at_s)
    monkeypatch.setattr("mcp_core.monitoring.taker.time", clock)
    counted = FakeDevice(uuid="GPU-1", power_mw=(300_000,), energy_mj=tuple(30_000 * n for n in range(50)))
    without = FakeDevice(uuid="GPU-2", power_mw=(300_000,), energy_mj=(None,))
    taker, history, used_s = Taker(FakeNvml([counted, without])), History(), []
    taker.open()
    for _ in range(5):
        sample = taker.take(())
        used_s.append(sample.at_s)
        history.add(sample.at_s, readings_of(sample))
        at_s += 0.1
    taker.close()
    assert used_s[-1] - used_s[0] == pytest.approx(0.4)
    window = history.window(used_s[0] - 1, used_s[-1] + 1)
    assert window.total("gpu0.energy_j") == pytest.approx(4 * 30.0)
    assert window.total("gpu1.energy_j") == pytest.approx(300 * (used_s[-1] - used_s[0]), rel=0.05)


def test_a_split_device_has_its_parts_series_and_a_workers_memory_in_them():
    part = FakeInstance(memory_used_bytes=5000, processes={42: 3000})
    device = FakeDevice(instances=(None, part), utilization_percent=(None,), processes=({},))
    taker = Taker(FakeNvml([device]))
    taker.open()
    sample = taker.take((WorkerProbe("w", 42, "one", None),))
    taker.close()
    assert [(each.index, each.memory_used_bytes) for each in sample.devices[0].instances] == [(1, 5000)]
    gauges = readings_of(sample).gauges
    assert gauges["gpu0.mig1.memory_used_bytes"] == 5000
    assert gauges["gpu0.utilization_percent"] is None
    assert gauges["w.device_bytes"] == 3000


def test_others_memory_on_a_device_leaves_out_this_apps_processes():
    import os

    device = FakeDevice(processes=({os.getpid(): 700, 1: 50, 2: 7},))
    taker = Taker(FakeNvml([device]))
    taker.open()
    sample = taker.take((), (ProcessProbe(os.getpid(), "this"),))
    taker.close()
    assert readings_of(sample).gauges["gpu0.others_memory_bytes"] == 57
    assert sample.processes[0].resident_bytes > 1e6


def test_engine_counters_come_as_what_was_added():
    taker = Taker(FakeNvml(reason="none"))
    taker.open()
    totals = [(5, 1), (25, 2), (30, 2), (3, 0)]  # the last: the engine began anew
    samples = [
        taker.take((WorkerProbe("w", None, "one", EngineStats(output_tokens_total=n, preemptions_total=m)),))
        for n, m in totals
    ]
    added = [sample.workers[0].added for sample in samples]
    assert added[0] is None
    assert [(each["output_tokens"], each["preemptions"]) for each in added[1:3]] == [(20, 1), (5, 0)]
    assert added[3] is None
    assert samples[0].others_cores is None  # a server whose processes are not known
