"""run_recorder: planted series of a device and a worker come back with the Run."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from mcp_core import hardware
from mcp_core.decision.store import Store
from mcp_core.errors import WorkerDied
from mcp_core.evaluation import benchmark
from mcp_core.evaluation import cores as cores_module
from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw
from mcp_core.evaluation.run_recorder import RunRecorder
from mcp_core.generation import EngineStats
from mcp_core.monitoring.fake_nvml import FakeDevice, FakeNvml
from mcp_core.monitoring.latency import RecentLatency
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.presets import bundled
from mcp_core.serving.client import Look
from mcp_core.workload import Lengths, Workload
from tests.strangers import SPIN, stranger

# At 400 W for 0.1 s: 40 J a reading.
DEVICE = FakeDevice(
    power_mw=(400_000,),
    energy_mj=tuple(40_000 * reading for reading in range(100)),
    throttle_reasons=(1, 1 | 4, 0),
    processes=({42: 700, 43: 300},),
)


class Client:
    """Tells 10 more output tokens at each look; from look ``dies_at`` on it is dead."""

    def __init__(self, dies_at: int = 1000) -> None:
        self.looks, self.dies_at = 0, dies_at

    async def look(self) -> Look:
        self.looks += 1
        if self.looks >= self.dies_at:
            raise WorkerDied("Gone.")
        stats = EngineStats(running=3, queued=1, output_tokens_total=10 * self.looks)
        return Look(stats, latency=RecentLatency(5, ttft_p50_ms=20.0))


def record(client: Client, seconds: float = 0.35, **options) -> RunTelemetry:
    async def main() -> RunTelemetry:
        recorder = RunRecorder(client, None, "m", interval_s=0.1, nvml=FakeNvml([DEVICE]), **options)
        async with recorder:
            await asyncio.sleep(seconds)
        return recorder.telemetry

    return asyncio.run(main())


def test_gauges_counters_and_reasons_of_the_window():
    client = Client()
    found = record(client, asks=True)
    points = len(found.at_s)
    assert points == client.looks >= 4
    assert found.measured("worker.running") == (3.0,) * points
    assert found.total("worker.output_tokens") == 10 * (points - 1)  # from the first look to the last
    assert found.total("gpu0.energy_j") == 40 * (points - 1)
    assert found.mean("gpu0.power_w") == 400
    assert found.mean("worker.ttft_p50_ms") == 20
    assert found.mean("gpu0.power_throttled") == pytest.approx(1 / points)
    assert found.throttle_reasons == {"gpu0": ("software power cap",)}
    assert found.devices == ("gpu0",)
    assert found.at_s[0] < 0.1
    assert 0.3 < found.at_s[-1] < 1
    assert RunTelemetry.model_validate_json(found.model_dump_json()) == found


def test_a_server_that_dies_leaves_gaps_and_the_device_goes_on():
    found = record(Client(dies_at=3), asks=True)
    assert found.gauges["worker.running"][:2] == (3.0, 3.0)
    assert set(found.gauges["worker.running"][2:]) == {None}
    assert len(found.measured("gpu0.power_w")) == len(found.at_s)


def test_a_server_of_somebody_else_is_not_asked():
    client = Client()
    found = record(client, 0.05, asks=False)
    assert client.looks == 0
    assert not [name for name in found.gauges if name.startswith("worker.")]


def test_the_store_gives_back_what_a_measurement_kept(worker_state, tmp_path):
    workload = Workload(
        name="w",
        requests=4,
        concurrency=2,
        prompt_tokens=Lengths(min=4, max=4),
        output_tokens=Lengths(min=4, max=4),
    )
    with (
        Store(f"sqlite:///{tmp_path}/runs.sqlite") as store,
        FakeServer(LatencyLaw(30, 10), state=worker_state) as server,
    ):
        measuring = benchmark.measure(server.url, "token", bundled(), workload, hardware.detect(), keep=store.add)
        run = asyncio.run(measuring)
        found = RunTelemetry.model_validate(store.telemetry(run.id))
    assert run.status == "ok"
    assert found.total("worker.output_tokens") == run.measurement.output_tokens
    assert found.highest("host.memory_used_bytes") > 0


def test_others_load_counts_on_the_cores_of_before_this_process_was_pinned():
    """A busy process on each core, of which one is the measured worker: one core's worth is others'."""
    cores = cores_module.usable_cores()
    if len(cores) < 2:
        pytest.skip("one core")
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(stranger(SPIN)) for _ in cores]
        stack.callback(os.sched_setaffinity, 0, cores)
        for pid, core in zip(busy, sorted(cores), strict=True):
            os.sched_setaffinity(pid, {core})
        os.sched_setaffinity(0, {max(cores)})

        async def main() -> RunTelemetry:
            options = {"asks": True, "cores": cores, "interval_s": 0.3, "nvml": FakeNvml(reason="none")}
            recorder = RunRecorder(Client(), busy[0], "m", **options)
            async with recorder:
                await asyncio.sleep(1)
            return recorder.telemetry

        others = asyncio.run(main()).mean("host.others_cores")
    # All cores are busy; the worker has at most one of them, so what is left is at least the others'.
    assert len(cores) - 1 - 0.3 < others <= len(cores)
