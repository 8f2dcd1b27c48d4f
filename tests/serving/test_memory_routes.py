from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcp_core.errors import McpError, RequestRejected
from mcp_core.recipe import Recipe
from mcp_core.serving.client import ServerClient
from mcp_core.serving.memory_routes import MemoryAnswers
from mcp_core.workload import Lengths, Workload

Serve = Callable[..., Any]
TOKEN = "control-token"
RECIPE = Recipe(device="cpu", threads=1, dtype="fp32")


def ask(url: str, question: Callable[[ServerClient], Any], token: str | None = TOKEN) -> Any:
    async def run() -> Any:
        async with ServerClient(url, token) as client:
            return await question(client)

    return asyncio.run(run())


def test_the_analysis_thinned_and_whole(serve: Serve) -> None:
    url = serve().url
    whole = ask(url, lambda client: client.memory_analysis())
    assert [(phase.name, phase.seconds, phase.samples) for phase in whole.timeline.phases] == [("load", 2.5, 0)]
    assert ask(url, lambda client: client.memory_analysis(40)).timeline.phases[0].samples == 40


def test_a_workload_s_longest_request_is_predicted(serve: Serve) -> None:
    work = Workload(prompt_tokens=Lengths(min=5, max=70), output_tokens=Lengths(min=1, max=9))
    assert ask(serve().url, lambda client: client.prediction(work)).context_tokens == 79


def test_a_prediction_is_for_the_recipe_as_it_runs_now(serve: Serve) -> None:
    url = serve().url
    assert ask(url, lambda client: client.prediction(Workload())).peak_bytes == 64
    ask(url, lambda client: client.set_recipe(RECIPE.replace({"batching.max_requests": 5})))
    assert ask(url, lambda client: client.prediction(Workload())).peak_bytes == 5


def test_a_workload_that_is_none_is_refused_by_field(serve: Serve) -> None:
    with pytest.raises(RequestRejected, match="requests"):
        ask(serve().url, lambda client: client.control("POST", "prediction", {"requests": 0}))


def test_without_an_nvidia_device_a_snapshot_is_refused_with_the_reason(serve: Serve) -> None:
    with pytest.raises(RequestRejected, match=r"This model is on the CPU\."):
        ask(serve().url, lambda client: client.memory_snapshot(1.0))


def test_the_routes_need_the_token(serve: Serve) -> None:
    with pytest.raises(McpError, match="token"):
        ask(serve().url, lambda client: client.memory_analysis(), token="wrong")


def test_a_snapshot_is_a_file_of_the_worker(tmp_path: Path) -> None:
    """The route itself: the seconds go in, the path and its size come out."""
    from mcp_core.serving.memory_routes import _Snapshot, memory_routes

    asked: list[float] = []

    def record(seconds: float) -> Path:
        asked.append(seconds)
        (tmp_path / "m.pickle").write_bytes(b"123")
        return tmp_path / "m.pickle"

    router = memory_routes(MemoryAnswers(None, None, record), lambda: RECIPE)  # type: ignore[arg-type]
    route = next(each for each in router.routes if each.path.endswith("snapshot"))
    assert asyncio.run(route.endpoint(_Snapshot(seconds=2.0))) == {
        "snapshot": str(tmp_path / "m.pickle"),
        "bytes": 3,
    }
    assert asked == [2.0]
