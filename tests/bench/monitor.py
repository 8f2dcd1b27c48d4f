"""What watching costs: the sampler's share of a core, metrics' share, and decode speed with and without.

``python tests/bench/monitor.py`` (two minutes; the bundled model, one thread). Replies with and without monitoring
alternate (A B B A) and each pair gives a ratio; beside tokens/s stands the worker's CPU time per token, which other
programs disturb less. On a machine with NVIDIA devices the sampler reads the real ones, elsewhere eight of the
shipped fake, which costs Python's part only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import aiohttp
import psutil
import pynvml

from mcp_core.evaluation.run_recorder import RunRecorder
from mcp_core.generation import EngineStats
from mcp_core.monitoring.fake_nvml import FakeDevice, FakeNvml
from mcp_core.monitoring.history import History
from mcp_core.monitoring.latency import RecentLatency
from mcp_core.monitoring.nvml import nvml_reason
from mcp_core.monitoring.prometheus import WorkerMetrics
from mcp_core.monitoring.sample import WorkerProbe
from mcp_core.monitoring.sampler import Sampler
from mcp_core.monitoring.series import readings_of
from mcp_core.monitoring.taker import Taker
from mcp_core.presets import bundled
from mcp_core.serving.supervisor import Supervisor, Worker

TOKENS = 64
TARGET_CORE_SHARE, TARGET_RATIO = 0.01, 0.98


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=16, help="pairs of replies, one watched")
    rounds = parser.parse_args().rounds
    for line in (sampler_share(), page_window(), day_of_memory(), metrics_share()):
        print(line, flush=True)
    print(asyncio.run(decode_ratio(rounds)))


def devices() -> object:
    """The real NVML where there is one, else eight fake devices with eight processes each."""
    if nvml_reason() is None:
        return pynvml
    held = dict.fromkeys(range(1, 9), 10**9)
    return FakeNvml([FakeDevice(uuid=f"GPU-{index}", processes=(held,)) for index in range(8)])


def probes(count: int = 2) -> tuple[WorkerProbe, ...]:
    stats = EngineStats(running=3, kv_pages_total=100, output_tokens_total=int(time.monotonic() * 100))
    latency = RecentLatency(9, 90.0, 180.0, 30.0, 36.0)
    return tuple(WorkerProbe(f"w{index}", os.getpid(), "one", stats, None, latency) for index in range(count))


def sampler_share() -> str:
    """CPU time of the sampler's own thread for one second's work: take, flatten, add to the rings."""
    sampler = Sampler(probes, nvml=devices())
    sampler._taker.open()
    sampler._sample_once()
    used_s = []
    for _ in range(200):
        before_s = time.thread_time()
        sampler._sample_once()
        used_s.append(time.thread_time() - before_s)
    share = statistics.mean(used_s)  # of one second
    return f"sampler: {share:.2%} of one core (target {TARGET_CORE_SHARE:.0%}), two workers, eight devices"


def page_window() -> str:
    """What a page's tick asks of the history: ten minutes by the second."""
    history, taker = History(), Taker(devices())
    taker.open()
    sample = taker.take(probes())
    readings = readings_of(sample)
    for at in range(600):
        history.add(1e9 + at, readings)
    began_s = time.perf_counter()
    window = history.window(1e9, 1e9 + 600)
    for name in window.gauges:
        window.mean(name)
    return f"page: {1e3 * (time.perf_counter() - began_s):.0f} ms for {len(window.gauges)} series of 600 rows"


def day_of_memory() -> str:
    """All rings full, one worker and one device."""
    taker = Taker(FakeNvml([FakeDevice()]))
    taker.open()
    taker.take(probes(1))
    readings = readings_of(taker.take(probes(1)))  # the second has what was added since the first
    tracemalloc.start()
    history = History()
    for at in range(24 * 3600):
        history.add(1e9 + at, readings)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return f"history: {size / 1e6:.1f} MB for a day of {len(readings.gauges) + len(readings.counters)} series"


def metrics_share() -> str:
    """Observing a gap for every token at 4,800 tok/s, and rendering /metrics every 5 s."""
    metrics = WorkerMetrics("m", EngineStats)
    count = 200_000
    began_s = time.thread_time()
    for index in range(count):
        metrics.observe_gap(0.001 * (index % 64))
    each_s = (time.thread_time() - began_s) / count
    began_s = time.thread_time()
    for _ in range(50):
        metrics.render()
    render_s = (time.thread_time() - began_s) / 50
    share = 4800 * each_s + render_s / 5
    return (
        f"metrics: {each_s * 1e9:.0f} ns a token, {render_s * 1e3:.2f} ms a scrape: {share:.2%} of one core "
        "at 4,800 tok/s scraped every 5 s"
    )


async def decode_ratio(rounds: int) -> str:
    """Decode by the engine's clock, alternately watched by everything there is and left alone.

    Watched: the app's sampler, the app's look at the worker every second, a Run's recorder, and a Prometheus that
    scrapes every second.
    """
    supervisor = Supervisor()
    worker = await supervisor.start(bundled().replace({"threads": 1, "dtype": "bf16"}))
    sampler = Sampler(lambda: (WorkerProbe(worker.id, worker.pid, worker.title, None),), nvml=devices())
    pairs = []
    try:
        await reply(worker)
        for index in range(rounds):
            if index % 2:
                watched, alone = await watched_reply(worker, sampler), await reply(worker)
            else:
                alone, watched = await reply(worker), await watched_reply(worker, sampler)
            pairs.append((watched, alone))
    finally:
        await supervisor.close()
    speeds = [watched.tok_s / alone.tok_s for watched, alone in pairs]
    cpu = [alone.cpu_s / watched.cpu_s for watched, alone in pairs]
    return (
        f"decode: tok/s watched / alone {words(speeds)}; by the worker's CPU time per token {words(cpu)} "
        f"(target {TARGET_RATIO}); {rounds} pairs of {TOKENS} tokens; "
        f"{statistics.median(alone.tok_s for _, alone in pairs):.1f} tok/s alone"
    )


def words(ratios: list[float]) -> str:
    """Median of the pairs, and its error by the median absolute deviation."""
    middle = statistics.median(ratios)
    error = 1.4826 * statistics.median(abs(each - middle) for each in ratios) * 1.25 / len(ratios) ** 0.5
    return f"{middle:.3f} ± {error:.3f}"


@dataclass(frozen=True)
class Reply:
    """Decode speed by the engine's clock, and what the worker's process used of a CPU for the whole request."""

    tok_s: float
    cpu_s: float


async def watched_reply(worker: Worker, sampler: Sampler) -> Reply:
    async with RunRecorder(worker.client, worker.pid, worker.title, asks=True, nvml=devices()):
        watching = asyncio.create_task(watch(worker, sampler))
        found = await reply(worker)
        watching.cancel()
        await asyncio.wait((watching,))
    return found


async def watch(worker: Worker, sampler: Sampler) -> None:
    """What the app and a Prometheus do meanwhile."""
    sampler._taker.open()
    async with aiohttp.ClientSession() as session:
        while True:
            await asyncio.to_thread(sampler._sample_once)
            await worker.client.look()
            async with session.get(f"{worker.url}/metrics") as answer:
                await answer.read()
            await asyncio.sleep(1)


async def reply(worker: Worker) -> Reply:
    """One greedy reply."""
    process = psutil.Process(worker.pid)
    body = {"model": worker.recipe.model.id, "prompt": "Once upon a time", "max_tokens": TOKENS, "ignore_eos": True}
    before = process.cpu_times()
    answer = await worker.client.whole("/v1/completions", body | {"temperature": 0}, timeout_s=120)
    after = process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return Reply((TOKENS - 1) / (answer["usage"]["timing"]["decode_ms"] / 1e3), cpu_s)


if __name__ == "__main__":
    main()
