"""The crowd job against a fake worker whose speed in each mode is planted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mcp_core.crowd import LIVE, Crowd, CrowdPlan
from mcp_core.evaluation import crowd_job
from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw
from mcp_core.jobs import EVENTS, Job, Outcome
from mcp_core.recipe import Recipe

# mode -> its law: what the job has to find again
LAWS = {"off": LatencyLaw(120, 4), "static": LatencyLaw(60, 4), "continuous": LatencyLaw(20, 2)}


class ModalServer(FakeServer):
    """A fake worker that changes its law with its batching mode, and is held as a real one is."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__(LAWS["off"], state=state)
        self.recipes: list[Recipe] = []

    def _application(self) -> web.Application:
        application = super()._application()
        application.router.add_post("/control/recipe", self._recipe)
        return application

    async def _recipe(self, request: web.Request) -> web.Response:
        assert self.stats.held_for is None
        recipe = Recipe.from_dict(await request.json())
        self.recipes.append(recipe)
        self.law = LAWS[recipe.batching.mode]
        return web.json_response({})


PLAN = CrowdPlan(users=6, prompt_tokens=8, output_tokens=5, modes=("off", "static", "continuous"))


def job_for(server: FakeServer, folder: Path, plan: CrowdPlan = PLAN) -> Job:
    recipe = server.state["recipe"] if server.state else {}
    request = {"worker_url": server.url, "recipe": recipe, "plan": plan.model_dump(mode="json")}
    return Job(folder, request, {"token": "t"})


def test_each_mode_comes_out_as_planted(worker_state: dict[str, Any], tmp_path: Path) -> None:
    worker_state["recipe"] = worker_state["recipe"] | {"prefix_cache": True}
    with ModalServer(worker_state) as server:
        outcome = asyncio.run(crowd_job.run(job_for(server, tmp_path)))
        bodies, recipes = server.stats.bodies, server.recipes
    assert outcome.state == "done"
    crowd = Crowd.model_validate(outcome.result)
    assert [run.mode for run in crowd.runs] == ["off", "static", "continuous"]
    for run in crowd.runs:
        law = LAWS[run.mode]
        assert (run.ended, run.completed, run.failure) == (True, 6, None)
        assert run.ttft_p50_ms == pytest.approx(law.ttft_ms, abs=25)
        assert run.output_tok_s == pytest.approx(30 / run.elapsed_ms * 1e3)
        for request in run.requests:
            assert (request.state, request.tokens) == ("ok", 5)
            assert request.first_ms is not None
            assert request.last_ms is not None
            assert 0 <= request.sent_ms < request.first_ms < request.last_ms <= run.elapsed_ms + 1
            assert (request.queue_ms, request.prefill_ms) == (0.0, law.ttft_ms)
    # 6 users and one warm-up a mode, nobody's prompt twice; the worker is at last what it was.
    assert len({json.dumps(body["prompt"]) for body in bodies}) == 3 * 7
    assert [recipe.prefix_cache for recipe in recipes] == [False, False, False, True]
    assert recipes[-1].model_dump(mode="json") == worker_state["recipe"]


def test_it_can_be_followed(worker_state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd_job, "LOOK_S", 0.01)
    plan = PLAN.model_copy(update={"modes": ("off",), "output_tokens": 60})
    seen: list[Crowd] = []

    async def follow(server: FakeServer) -> Outcome:
        task = asyncio.create_task(crowd_job.run(job_for(server, tmp_path, plan)))
        while not task.done():
            if (tmp_path / LIVE).exists():
                seen.append(Crowd.model_validate_json((tmp_path / LIVE).read_bytes()))
            await asyncio.sleep(0.01)
        return await task

    with ModalServer(worker_state) as server:
        asyncio.run(follow(server))
    states = [{request.state for request in crowd.runs[0].requests} for crowd in seen]
    assert any("waiting" in each for each in states)
    assert any("decoding" in each for each in states)
    assert Crowd.model_validate_json((tmp_path / LIVE).read_bytes()).runs[0].ended
    stages = [json.loads(line) for line in (tmp_path / EVENTS).read_text().splitlines()]
    assert stages[0]["message"] == "Changing to batching off."
    assert "of 6 replies complete" in stages[-1]["message"]


def test_cancelled_it_keeps_what_came_and_puts_the_mode_back(worker_state: dict[str, Any], tmp_path: Path) -> None:
    async def cancel(server: FakeServer) -> Outcome:
        plan = PLAN.model_copy(update={"output_tokens": 2000})
        task = asyncio.create_task(crowd_job.run(job_for(server, tmp_path, plan)))
        for _ in range(500):
            if server.stats.running == 6:
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        task.cancel()
        return await task

    with ModalServer(worker_state) as server:
        server.law = LAWS["off"]
        # The warm-up asks for 2,000 tokens too; it would take 8 s at the law's pace.
        LAWS["off"], kept = LatencyLaw(5, 0.01), LAWS["off"]
        try:
            outcome = asyncio.run(cancel(server))
        finally:
            LAWS["off"] = kept
        assert server.recipes[-1].model_dump(mode="json") == worker_state["recipe"]
        assert server.stats.held_for is None
    assert outcome.state == "cancelled"
    (run,) = Crowd.model_validate(outcome.result).runs
    assert {request.state for request in run.requests} <= {"cancelled", "ok"}
    assert any(request.state == "cancelled" for request in run.requests)


def test_requests_that_fail_are_shown_with_the_first_reason(worker_state: dict[str, Any], tmp_path: Path) -> None:
    class Breaking(ModalServer):
        async def _recipe(self, request: web.Request) -> web.Response:
            answer = await super()._recipe(request)
            self.law = LatencyLaw(5, 1, break_every=4)
            return answer

    plan = PLAN.model_copy(update={"modes": ("off",)})
    with Breaking(worker_state) as server:
        outcome = asyncio.run(crowd_job.run(job_for(server, tmp_path, plan)))
    (run,) = Crowd.model_validate(outcome.result).runs
    assert run.completed == 5
    assert [request.state for request in run.requests].count("failed") == 1
    assert run.failure is not None
    assert run.failure.message == "A planted failure."
