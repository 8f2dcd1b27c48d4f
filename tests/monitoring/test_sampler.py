"""sampler: known series, known rates and a process of known size come out."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from mcp_core.generation import EngineStats
from mcp_core.monitoring.fake_nvml import FakeDevice, FakeNvml
from mcp_core.monitoring.sample import Sample, WorkerProbe
from mcp_core.monitoring.sampler import Sampler

NO_NVML = FakeNvml(reason="NVML Shared Library Not Found")
BALLAST_BYTES = 64 * 2**20


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds 64 MiB of touched memory and sleeps."""
    code = f"x = b'x' * {BALLAST_BYTES}; print(flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def _sample_until(sampler: Sampler, done: Callable[[tuple[Sample, ...]], bool]) -> tuple[Sample, ...]:
    """Run the sampler until ``done`` with what it has, 10 s at most."""
    sampler.start()
    deadline_s = time.monotonic() + 10
    while not done(sampler.window(60)) and time.monotonic() < deadline_s:
        time.sleep(0.005)
    sampler.stop()
    return sampler.window(60)


def _no_workers() -> tuple[WorkerProbe, ...]:
    return ()


def test_the_scripted_series_of_a_device_come_out_in_order() -> None:
    nvml = FakeNvml([FakeDevice(memory_used_bytes=(10, 20, 30, 40), power_mw=(1000, None, 3000))])
    samples = _sample_until(Sampler(_no_workers, 0.01, nvml=nvml), lambda got: len(got) >= 4)
    assert [sample.devices[0].memory_used_bytes for sample in samples[:4]] == [10, 20, 30, 40]
    assert [sample.devices[0].power_w for sample in samples[:4]] == [1.0, None, 3.0, 3.0]


def test_nvml_stays_open_between_samples_and_is_given_back_at_the_end() -> None:
    nvml = FakeNvml([FakeDevice()])
    sampler = Sampler(_no_workers, 0.01, nvml=nvml)
    users: list[int] = []
    _sample_until(sampler, lambda got: bool(got) and bool(users.append(nvml.users) or len(users) > 3))
    assert min(users) >= 1
    assert nvml.users == 0


def test_without_nvml_there_are_no_devices_and_the_host_is_sampled() -> None:
    samples = _sample_until(Sampler(_no_workers, 0.01, nvml=NO_NVML), lambda got: len(got) >= 2)
    assert samples[-1].devices == ()
    assert samples[-1].host_memory_total_bytes == psutil.virtual_memory().total
    assert 0 < samples[-1].host_memory_used_bytes < samples[-1].host_memory_total_bytes
    assert samples[-1].workers == ()


def test_samples_are_an_interval_apart() -> None:
    samples = _sample_until(Sampler(_no_workers, 0.2, nvml=NO_NVML), lambda got: len(got) >= 4)
    gaps_s = [after.at_s - before.at_s for before, after in itertools.pairwise(samples)]
    assert 0.15 < sorted(gaps_s)[len(gaps_s) // 2] < 0.4


def test_only_the_last_samples_are_kept() -> None:
    seen: list[int] = []
    sampler = Sampler(lambda: seen.append(1) or (), 0.005, keep_s=0.015, nvml=NO_NVML)
    samples = _sample_until(sampler, lambda got: len(seen) >= 6)
    assert len(samples) == 3


def test_a_window_holds_its_last_seconds_only() -> None:
    sampler = Sampler(_no_workers, 0.05, nvml=NO_NVML)
    _sample_until(sampler, lambda got: len(got) >= 6)
    newest = sampler.window(60)[-1]
    within_s = time.time() - newest.at_s + 0.02
    assert sampler.window(within_s) == (newest,)


def test_resident_memory_of_a_known_process(child: subprocess.Popen[bytes]) -> None:
    probe = WorkerProbe("w", child.pid, "a child", None)
    samples = _sample_until(Sampler(lambda: (probe,), 0.02, nvml=NO_NVML), lambda got: len(got) >= 3)
    worker = samples[-1].workers[0]
    assert worker.resident_bytes == psutil.Process(child.pid).memory_info().rss
    assert worker.resident_bytes > BALLAST_BYTES
    assert samples[0].workers[0].cpu_percent is None
    assert worker.cpu_percent is not None
    assert worker.cpu_percent < 50  # it sleeps


def test_a_process_that_is_gone_is_none(child: subprocess.Popen[bytes]) -> None:
    probe = WorkerProbe("w", child.pid, "a child", None)
    sampler = Sampler(lambda: (probe,), 0.02, nvml=NO_NVML)
    sampler.start()
    child.kill()
    child.wait()
    time.sleep(0.2)
    sampler.stop()
    assert sampler.window(60)[-1].workers[0].resident_bytes is None


def test_device_bytes_are_those_of_the_workers_process() -> None:
    nvml = FakeNvml([FakeDevice(processes=({1: 700, 42: 300},)), FakeDevice(processes=(None,))])
    probe = WorkerProbe("w", 42, "one", None)
    samples = _sample_until(Sampler(lambda: (probe,), 0.01, nvml=nvml), bool)
    assert samples[0].workers[0].device_bytes == {0: 300}


def _rates(readings: list[tuple[float, int]]) -> list[float | None]:
    """Output speeds when the counters are read at these times with these totals, one reading a sample."""
    probes = [WorkerProbe("w", 1, "one", EngineStats(output_tokens_total=n), at_s) for at_s, n in readings]
    left = iter(probes)
    sampler = Sampler(lambda: (next(left, probes[-1]),), 0.01, nvml=NO_NVML)
    samples = _sample_until(sampler, lambda got: len(got) >= len(readings))
    return [sample.workers[0].output_tok_s for sample in samples[: len(readings)]]


def test_output_speed_is_growth_over_the_time_between_readings() -> None:
    now_s = time.monotonic()
    assert _rates([(now_s - 2.0, 100), (now_s - 1.5, 120), (now_s, 120)]) == [None, pytest.approx(40.0), 0.0]


def test_a_reading_that_did_not_change_keeps_the_speed() -> None:
    now_s = time.monotonic()
    again = (now_s, 130)
    assert _rates([(now_s - 1.0, 100), again, again]) == [None, pytest.approx(30.0), pytest.approx(30.0)]


def test_counters_that_stopped_coming_give_no_speed() -> None:
    long_ago_s = time.monotonic() - 100
    stale = (long_ago_s + 1, 50)
    assert _rates([(long_ago_s, 0), stale, stale])[-1] is None


def test_a_counter_that_began_anew_gives_no_speed() -> None:
    now_s = time.monotonic()
    assert _rates([(now_s - 1.0, 500), (now_s, 10)]) == [None, None]


def test_speed_over_a_known_sleep() -> None:
    """Counters that grow with the clock at 1,000 tokens/s, without a time stamp of their own."""
    began_s = time.monotonic()

    def probes() -> tuple[WorkerProbe, ...]:
        tokens = round(1000 * (time.monotonic() - began_s))
        return (WorkerProbe("w", 1, "one", EngineStats(output_tokens_total=tokens)),)

    samples = _sample_until(Sampler(probes, 0.2, nvml=NO_NVML), lambda got: len(got) >= 4)
    assert samples[-1].workers[0].output_tok_s == pytest.approx(1000, rel=0.05)


def test_a_probe_that_raises_leaves_a_gap_and_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def probes() -> tuple[WorkerProbe, ...]:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("once")
        return ()

    _sample_until(Sampler(probes, 0.01, nvml=NO_NVML), lambda got: len(got) >= 3)
    assert len(calls) >= 4
    assert "a sample was skipped" in caplog.text


def test_one_sample_takes_less_than_a_hundredth_of_its_second() -> None:
    import os

    probe = WorkerProbe("w", os.getpid(), "this process", EngineStats())
    sampler = Sampler(lambda: (probe,), nvml=FakeNvml([FakeDevice()]))
    sampler._sample_once()
    before_s = time.thread_time()
    for _ in range(50):
        sampler._sample_once()
    assert (time.thread_time() - before_s) / 50 < 0.01
