"""The profile job against a fake worker that is recorded when it has been asked for so many tokens."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mcp_core import paths
from mcp_core.errors import Busy, InputError, McpError
from mcp_core.evaluation import profile_job, trace_store
from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw
from mcp_core.jobs import EVENTS, Job, Outcome
from mcp_core.profile_plan import ProfileLoad, ProfilePlan
from tests.evaluation.traces import MadeTrace


class RecordedServer(FakeServer):
    """Its profile ends when ``tokens`` were made; two traces come out of it, or none when it is stopped."""

    def __init__(self, state: dict[str, Any], folder: Path, *, tokens: int = 12, **law: Any) -> None:
        super().__init__(LatencyLaw(5, 2, **law), state=state)
        self.folder = folder
        self.tokens = tokens
        self.plans: list[dict[str, Any]] = []
        self.stopped = False
        self.recording = threading.Event()
        self.held_while_recording: list[str | None] = []

    def _application(self) -> web.Application:
        application = super()._application()
        application.router.add_post("/control/profile", self._profile)
        application.router.add_post("/control/stop-profile", self._stop_profile)
        return application

    async def _profile(self, request: web.Request) -> web.Response:
        self.plans.append(await request.json())
        self.recording.set()
        for _ in range(4000):  # 20 s
            if self.stats.output_tokens >= self.tokens or self.stopped:
                break
            await asyncio.sleep(0.005)
        self.held_while_recording.append(self.stats.held_for)
        return web.json_response({"traces": [self._trace(number) for number in (1, 2)]})

    async def _stop_profile(self, _request: web.Request) -> web.Response:
        self.stopped = True
        return web.json_response({})

    def _trace(self, number: int) -> dict[str, Any]:
        trace = MadeTrace()
        trace.step(1000, 100, prefill=8)
        trace.step(1200, 50)
        path = self.folder / f"raw-{number}.json"
        path.write_text(json.dumps({"traceEvents": trace.events}))
        return {"path": str(path), "steps": [step.model_dump(mode="json") for step in trace.steps]}


def job_for(server: FakeServer, folder: Path, load: ProfileLoad | None = None, **plan: Any) -> Job:
    request = {
        "worker_url": server.url,
        "plan": ProfilePlan(**plan).model_dump(mode="json"),
        "load": load.model_dump(mode="json") if load else None,
        "run_id": "run-7",
    }
    return Job(folder, request, {"token": "t"})


LOAD = ProfileLoad(concurrency=2, prompt_tokens=8, output_tokens=3)


def test_a_worker_is_loaded_recorded_and_its_traces_kept(worker_state: dict[str, Any], tmp_path: Path) -> None:
    with RecordedServer(worker_state, tmp_path) as server:
        outcome = asyncio.run(profile_job.run(job_for(server, tmp_path, LOAD, steps=4, repeat=2)))
        stats = server.stats
    assert outcome.state == "done"
    assert server.held_while_recording[0] is not None
    assert stats.held_for is None
    assert (server.plans[0]["steps"], server.plans[0]["repeat"]) == (4, 2)
    assert {len(body["prompt"]) for body in stats.bodies} == {8}
    assert len({json.dumps(body["prompt"]) for body in stats.bodies}) == len(stats.bodies)
    kept = trace_store.list_traces()
    assert {each.id for each in kept} == set(outcome.result["traces"])
    assert len(kept) == 2
    summary = kept[-1].summary
    assert (summary.run_id, summary.device, summary.engine) == ("run-7", "cpu", "transformers")
    assert summary.recipe_fingerprint
    assert summary.title.startswith("Fake, fp32, batching")
    assert summary.prefill is not None
    assert summary.prefill.tokens == 8
    assert list(tmp_path.glob("raw-*")) == []
    events = [json.loads(line) for line in (tmp_path / EVENTS).read_text().splitlines()]
    assert [event["stage"] for event in events][-1] == "read"
    assert all(0 <= event["fraction"] <= 1 for event in events if event["fraction"] is not None)


def test_without_a_load_nothing_is_sent_and_nothing_held(worker_state: dict[str, Any], tmp_path: Path) -> None:
    with RecordedServer(worker_state, tmp_path, tokens=0) as server:
        outcome = asyncio.run(profile_job.run(job_for(server, tmp_path)))
    assert outcome.state == "done"
    assert server.stats.bodies == []
    assert server.held_while_recording == [None]


def test_cancelled_it_stops_the_worker_s_recording_and_keeps_nothing(
    worker_state: dict[str, Any], tmp_path: Path
) -> None:
    async def story(server: RecordedServer) -> Outcome:
        running = asyncio.create_task(profile_job.run(job_for(server, tmp_path, LOAD)))
        await asyncio.to_thread(server.recording.wait, 20)
        running.cancel()
        return await running

    with RecordedServer(worker_state, tmp_path, tokens=10**9) as server:
        outcome = asyncio.run(story(server))
        assert server.stopped
        assert server.stats.held_for is None
    assert outcome.state == "cancelled"
    assert trace_store.list_traces() == ()
    assert list(tmp_path.glob("raw-*")) == []


def test_what_a_killed_job_left_is_dropped(worker_state: dict[str, Any], tmp_path: Path) -> None:
    old, new, other = (paths.home("profiles") / name for name in ("raw-1.json", "raw-2.json", "snapshot.pickle"))
    for path in (old, new, other):
        path.write_text("{}")
    for path in (old, other):
        os.utime(path, (0, 0))
    with RecordedServer(worker_state, tmp_path, tokens=0) as server:
        asyncio.run(profile_job.run(job_for(server, tmp_path)))
    assert [path.exists() for path in (old, new, other)] == [False, True, True]


def test_a_load_that_fails_ends_it_with_its_reason(worker_state: dict[str, Any], tmp_path: Path) -> None:
    with RecordedServer(worker_state, tmp_path, tokens=10**9, error_every=1) as server:
        with pytest.raises(McpError, match="planted"):
            asyncio.run(profile_job.run(job_for(server, tmp_path, LOAD)))
        assert server.stopped


def test_a_load_that_does_not_fit_and_an_engine_without_traces_are_refused(
    worker_state: dict[str, Any], tmp_path: Path
) -> None:
    worker_state["max_context"] = 64
    with RecordedServer(worker_state, tmp_path) as server:
        long = ProfileLoad(prompt_tokens=60, output_tokens=5)
        with pytest.raises(InputError, match="65 tokens; the context holds 64"):
            asyncio.run(profile_job.run(job_for(server, tmp_path, long)))
        worker_state["recipe"] = worker_state["recipe"] | {"engine": "llama.cpp"}
        with pytest.raises(InputError, match=r"llama\.cpp records no trace"):
            asyncio.run(profile_job.run(job_for(server, tmp_path, LOAD)))
    assert server.plans == []


def test_a_held_worker_is_left_alone(worker_state: dict[str, Any], tmp_path: Path) -> None:
    with RecordedServer(worker_state, tmp_path) as server:
        server.stats.held_for = "measuring"
        with pytest.raises(Busy):
            asyncio.run(profile_job.run(job_for(server, tmp_path, LOAD)))
    assert server.plans == []


def test_a_trace_that_cannot_be_read_is_deleted_too(worker_state: dict[str, Any], tmp_path: Path) -> None:
    with RecordedServer(worker_state, tmp_path, tokens=0) as server:
        original = server._trace

        def cut_off(number: int) -> dict[str, Any]:
            trace = original(number)
            Path(trace["path"]).write_text('{"traceEvents": [')
            return trace

        server._trace = cut_off  # type: ignore[method-assign]
        with pytest.raises(InputError, match="not JSON"):
            asyncio.run(profile_job.run(job_for(server, tmp_path)))
    assert not (tmp_path / "raw-1.json").exists()


def test_a_trace_on_another_machine_is_said_so(worker_state: dict[str, Any], tmp_path: Path) -> None:
    with RecordedServer(worker_state, tmp_path, tokens=0) as server:
        server.folder = tmp_path / "there"
        server.folder.mkdir()
        original = server._trace

        def elsewhere(number: int) -> dict[str, Any]:
            trace = original(number)
            Path(trace["path"]).unlink()
            return trace

        server._trace = elsewhere  # type: ignore[method-assign]
        with pytest.raises(InputError, match="not on this machine"):
            asyncio.run(profile_job.run(job_for(server, tmp_path)))
    assert list(paths.home("traces").iterdir()) == []
