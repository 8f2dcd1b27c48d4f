from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace

import pytest

from mcp_core import hardware
from mcp_core.errors import Busy, DoesNotFit, WorkerDied
from mcp_core.evaluation import benchmark
from mcp_core.evaluation.benchmark import measure, unmeasured
from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw
from mcp_core.monitoring.nvml import NvmlDevice
from mcp_core.presets import bundled
from mcp_core.recipe import ModelRef
from mcp_core.results import Run
from mcp_core.workload import Lengths, Workload

WORKLOAD = Workload(
    name="test",
    requests=8,
    concurrency=2,
    prompt_tokens=Lengths(min=4, max=30),
    output_tokens=Lengths(min=4, max=12),
    warmup_requests=2,
)
LAW = LatencyLaw(ttft_ms=30, tpot_ms=10)
MACHINE = hardware.detect()


def bench(url, recipe=None, workload=WORKLOAD, machine=MACHINE, **options):
    return asyncio.run(measure(url, "token", recipe or bundled(), workload, machine, **options))


def test_a_run_of_a_worker(worker_state):
    kept, stages = [], []
    with FakeServer(LAW, state=worker_state) as server:
        run = bench(
            server.url,
            keep=lambda *found: kept.append(found),
            on_progress=lambda progress: stages.append(progress.stage),
        )
    assert run.status == "ok"
    assert run.failure is None
    assert run.recipe.model.sha256 == "ab" * 32  # as the worker resolved it
    assert run.effective.threads == 1
    assert run.memory.peak_bytes == 2000
    assert run.load_s == 1.5
    measured = run.measurement
    assert (measured.requests, measured.completed, measured.failed) == (8, 8, 0)
    assert server.stats.completed == 10  # with the warm-up, which is counted nowhere
    assert measured.tpot_ms.p50 == pytest.approx(10, rel=0.3)
    assert measured.engine_tpot_ms == pytest.approx(10)
    engine_s = 8 * 0.030 + (measured.output_tokens - 8) * 0.010
    assert measured.engine_output_tok_s == pytest.approx(measured.output_tokens / engine_s)
    work = run.engine_work
    assert work.output_tokens == measured.output_tokens  # the warm-up's are not among them
    assert work.prefill_s + work.decode_s == pytest.approx(engine_s)
    assert measured.prefill_ms.p50 == pytest.approx(30)
    assert (measured.queue_ms.n, measured.decode_ms.n) == (8, 8)
    assert run.energy_j_per_token is None
    assert run.conditions.load_average > 0
    assert run.conditions.device is None
    assert run.evidence == "measured on transformers"
    assert run.versions["mcp-core"]
    assert [len(records) for _, records, _ in kept] == [8]
    assert kept[0][0] == run
    assert list(dict.fromkeys(stages)) == ["warm-up", "measure"]
    assert Run.model_validate_json(run.model_dump_json()) == run


def test_worker_is_pinned_only_while_it_is_measured(worker_state, sleeper):
    seen = []
    with FakeServer(LAW, state=worker_state) as server:
        bench(server.url, on_progress=lambda _: seen.append(len(os.sched_getaffinity(sleeper))))
    if MACHINE.cores >= 2:
        assert set(seen) == {1}
    assert len(os.sched_getaffinity(sleeper)) == MACHINE.cores


def test_a_foreign_endpoint_is_measured_without_control_routes():
    recipe = bundled().model_copy(
        update={"model": ModelRef(source="endpoint", id="http://elsewhere"), "engine": "endpoint"}
    )
    with FakeServer(LAW) as server:
        run = bench(server.url + "/v1", recipe)
    assert run.status == "ok"
    assert run.measurement.completed == 8
    assert run.measurement.prompt_tokens > 0
    assert run.effective is None
    assert run.memory is None
    assert run.measurement.engine_output_tok_s is None
    assert run.evidence == "measured on endpoint"
    assert any(reason.startswith("endpoint") for reason in run.comparable.reasons)


def reasons_of(run, word):
    return [reason for reason in run.comparable.reasons if word in reason]


def test_reasons_not_to_compare(worker_state, monkeypatch):
    """Each is planted alone; without it, it is not there."""
    with FakeServer(LAW, state=worker_state) as server:
        plain = bench(server.url)
        smoke = bench(server.url, workload=WORKLOAD.replace({"smoke_test": True}))
        monkeypatch.setattr(benchmark.OthersLoad, "read", lambda _self: 0.51)
        noisy = bench(server.url)
        monkeypatch.setattr(benchmark.OthersLoad, "read", lambda _self: 0.49)
        quiet = bench(server.url)
    assert reasons_of(smoke, "smoke test")
    assert not reasons_of(plain, "smoke test")
    assert reasons_of(noisy, "noisy")
    assert not noisy.comparable.ok
    assert not reasons_of(quiet, "noisy")


def test_what_others_used_is_known_of_a_foreign_engine_too(worker_state, monkeypatch):
    """Its processes are ours, though nobody pins them."""
    foreign = worker_state["recipe"] | {"engine": "vllm", "device": "cuda:0", "dtype": "bf16"}
    monkeypatch.setattr(benchmark, "pinned", None)
    with FakeServer(LAW, state=worker_state | {"recipe": foreign}) as server:
        run = bench(server.url)
        monkeypatch.setattr(benchmark.OthersLoad, "read", lambda _self: 0.51)
        noisy = bench(server.url)
    assert run.recipe.engine == "vllm"
    assert run.conditions.others_cores is not None
    assert not reasons_of(run, "not pinned")
    assert reasons_of(noisy, "noisy")


def test_a_late_generator_marks_the_run(worker_state, monkeypatch):
    whole = benchmark.run_load

    async def late(*args, **options):
        return replace(await whole(*args, **options), lag_p99_ms=2.1)

    monkeypatch.setattr(benchmark, "run_load", late)
    with FakeServer(LAW, state=worker_state) as server:
        run = bench(server.url)
    assert run.measurement.client_lag_p99_ms == 2.1
    assert reasons_of(run, "client-limited")


def test_tokens_from_a_cache_mark_the_run(worker_state, monkeypatch):
    readings = iter([5, 105])
    whole = benchmark.ServerClient.stats_and_memory

    async def counting(self):
        stats, memory = await whole(self)
        return replace(stats, cached_prompt_tokens_total=next(readings)), memory

    monkeypatch.setattr(benchmark.ServerClient, "stats_and_memory", counting)
    with FakeServer(LAW, state=worker_state) as server:
        run = bench(server.url)
    assert reasons_of(run, "warm cache: 100 prompt tokens")


def gpu(energy_mj):
    values = dict.fromkeys(NvmlDevice.__dataclass_fields__)
    return NvmlDevice(**(values | {"index": 0, "uuid": "GPU-x", "energy_mj": energy_mj}))


def test_energy_is_the_difference_of_the_devices_counter(worker_state, monkeypatch):
    cuda = hardware.Device(
        id="cuda:0", kind="cuda", name="GPU", memory_total_bytes=1, memory_free_bytes=1, uuid="GPU-x"
    )
    machine = MACHINE.model_copy(update={"devices": (*MACHINE.devices, cuda)})
    worker_state["effective"]["device"] = "cuda:0"
    counter = iter([1_000_000, 1_050_000])
    monkeypatch.setattr(benchmark, "read_devices", lambda: ("1", (gpu(next(counter)),)))
    with FakeServer(LAW, state=worker_state) as server:
        run = bench(server.url, machine=machine)
    assert run.energy_j_per_token == pytest.approx(50 / run.measurement.output_tokens)
    monkeypatch.setattr(benchmark, "read_devices", lambda: ("1", (gpu(None),)))
    with FakeServer(LAW, state=worker_state) as server:
        assert bench(server.url, machine=machine).energy_j_per_token is None


def test_no_server_is_a_failed_run():
    run = bench("http://127.0.0.1:9")
    assert run.status == "failed"
    assert run.failure.kind == "worker"
    assert run.failure.hint
    assert run.measurement is None


def test_a_workload_longer_than_the_context_is_refused_before_anything_is_sent(worker_state):
    with FakeServer(LAW, state=worker_state) as server:
        run = bench(server.url, workload=WORKLOAD.replace({"prompt_tokens.max": 505}))
    assert run.status == "refused"
    assert "517 tokens" in run.failure.message
    assert "512" in run.failure.message
    assert server.stats.requests == 0


def test_a_server_that_dies_midway_is_a_failed_run_with_what_was_measured(worker_state):
    with FakeServer(LatencyLaw(5, 1, die_at=7), state=worker_state) as server:
        run = bench(server.url)
    assert run.status == "failed"
    assert run.failure.kind == "worker"
    assert 0 < run.measurement.completed <= 4
    assert run.measurement.completed + run.measurement.failed == 8


def test_a_server_that_answers_nothing_is_a_failed_run_with_its_reason(worker_state):
    with FakeServer(LatencyLaw(5, 1, error_every=1), state=worker_state) as server:
        run = bench(server.url)
    assert run.status == "failed"
    assert "A planted failure." in run.failure.message


def test_single_failures_leave_the_run_ok(worker_state):
    with FakeServer(LatencyLaw(5, 1, error_every=4), state=worker_state) as server:
        run = bench(server.url)
    assert run.status == "ok"
    assert (run.measurement.completed, run.measurement.failed) == (6, 2)


@pytest.mark.parametrize(("after_s", "measured"), [(0.05, False), (0.6, True)], ids=["warm-up", "measuring"])
def test_cancelling_gives_a_run_of_what_was_measured(worker_state, after_s, measured):
    kept = []

    async def main(url):
        workload = WORKLOAD.replace({"requests": 100})
        keep = lambda *found: kept.append(found)  # noqa: E731 - one line
        task = asyncio.create_task(measure(url, "token", bundled(), workload, MACHINE, keep=keep))
        await asyncio.sleep(after_s)
        task.cancel()
        return await asyncio.wait_for(task, 5)

    with FakeServer(LatencyLaw(100 if not measured else 20, 5), state=worker_state) as server:
        run = asyncio.run(main(server.url))
    assert run.status == "cancelled"
    assert run.failure.kind == "cancelled"
    assert (run.measurement is not None) is measured
    if measured:
        assert run.measurement.completed > 0
        assert run.measurement.cancelled in (1, 2)  # a client may have been between two replies
        assert [record.index for record in kept[0][1]] == list(range(len(kept[0][1])))
    assert kept[0][0] == run


def test_the_lease_is_held_during_and_given_back_after(worker_state):
    events = []

    @contextlib.contextmanager
    def lease():
        events.append("taken")
        yield
        events.append("given back")

    with FakeServer(LAW, state=worker_state) as server:
        bench(server.url, lease=lease(), on_progress=lambda _: events.append("working"))
    assert events[0] == "taken"
    assert events[-1] == "given back"
    assert events.count("working") > 8


def test_the_worker_is_held_during_and_released_after(worker_state):
    seen = []
    with FakeServer(LAW, state=worker_state) as server:
        bench(server.url, on_progress=lambda _: seen.append(server.stats.held_for))
        assert set(seen) == {"measuring test"}
        assert server.stats.held_for is None
        bench(server.url, workload=WORKLOAD.replace({"timeout_s": 0.001}))
        assert server.stats.held_for is None


def test_a_worker_that_is_held_already_is_a_refused_run(worker_state):
    with FakeServer(LAW, state=worker_state) as server:
        server.stats.held_for = "measuring something else"
        run = bench(server.url)
        assert server.stats.held_for == "measuring something else"
    assert run.status == "refused"
    assert run.failure.kind == "busy"
    assert "something else" in run.failure.message
    assert server.stats.requests == 0


@pytest.mark.parametrize(
    ("error", "status"), [(DoesNotFit("no"), "refused"), (Busy("no"), "refused"), (WorkerDied("no"), "failed")]
)
def test_a_recipe_that_did_not_start_is_a_run_too(error, status):
    run = unmeasured(bundled(), WORKLOAD, MACHINE, error)
    assert run.status == status
    assert (run.failure.kind, run.failure.message) == (error.kind, "no")
    assert run.measurement is None
