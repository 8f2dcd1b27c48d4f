from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import pytest

from mcp_core import devices
from mcp_core.errors import Busy, QueueFull, RequestRejected
from mcp_core.recipe import Recipe
from mcp_core.serving.client import ServerClient

Serve = Callable[..., Any]
RECIPE = Recipe(device="cpu", threads=1, dtype="fp32")


def ask(
    url: str, headers: dict[str, str], body: Any = None, method: str | None = None
) -> tuple[int, dict[str, Any]]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    all_headers = headers | ({"Content-Type": "application/json"} if data is not None else {})
    request = urllib.request.Request(url, data, all_headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_state_says_what_runs(serve: Serve, auth: dict[str, str], model_id: str) -> None:
    import os

    status, state = ask(serve().url + "/control/state", auth)
    assert status == 200
    assert set(state) == {
        "state",
        "title",
        "model",
        "recipe",
        "effective",
        "memory",
        "vocab_size",
        "special_ids",
        "eos_ids",
        "max_context",
        "load_s",
        "random_weights",
        "pid",
        "numerics_key",
    }
    assert (state["state"], state["model"], state["pid"], state["load_s"]) == ("ready", model_id, os.getpid(), 1.5)
    assert Recipe.from_dict(state["recipe"]) == RECIPE
    assert state["numerics_key"] == RECIPE.numerics_key
    assert (state["vocab_size"], state["special_ids"], state["eos_ids"]) == (258, [256, 257], [257])
    assert state["memory"]["baseline_bytes"] == 123


def test_the_stats_are_the_engine_s(serve: Serve, auth: dict[str, str]) -> None:
    _, stats = ask(serve().url + "/control/stats", auth)
    assert (stats["running"], stats["max_requests"], stats["kv_capacity_tokens"]) == (0, 64, 1024)
    assert stats["memory"]["baseline_bytes"] == 123


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer é"}])
@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("GET", "state"),
        ("GET", "stats"),
        ("POST", "recipe"),
        ("POST", "hold"),
        ("POST", "release"),
        ("POST", "profile"),
        ("POST", "stop-profile"),
        ("POST", "drain"),
        ("POST", "reset-peaks"),
        ("POST", "shutdown"),
    ],
)
def test_every_route_needs_the_token(serve: Serve, headers: dict[str, str], method: str, route: str) -> None:
    server = serve()
    body = {"purpose": "x"} if method == "POST" else None
    status, answer = ask(f"{server.url}/control/{route}", headers, body, method)
    assert (status, answer["error"]["type"]) == (401, "authentication_error")
    assert server.calls == []


def test_a_live_field_changes_and_the_state_shows_it(serve: Serve, auth: dict[str, str]) -> None:
    server = serve()
    url = server.url + "/control/recipe"
    live = {"batching.max_requests": 3, "batching.mode": "continuous", "prefix_cache": True}
    asked = RECIPE.replace(live | {"device": "auto", "threads": None})
    status, state = ask(url, auth, asked.model_dump(mode="json"))
    assert status == 200
    assert state["recipe"]["batching"]["max_requests"] == 3
    assert (state["recipe"]["batching"]["mode"], state["recipe"]["prefix_cache"]) == ("continuous", True)
    assert (state["recipe"]["device"], state["recipe"]["threads"]) == ("cpu", 1)
    assert server.engine.stats().max_requests == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dtype": "bf16"}, "dtype"),
        ({"quantization.scheme": "bnb-nf4"}, "quantization.scheme"),
        ({"kv.max_context": 64}, "kv.max_context"),
        ({"compile": "compiled"}, "compile"),
        ({"model.id": "other"}, "model.id"),
    ],
)
def test_any_other_field_is_refused_by_name(
    serve: Serve, auth: dict[str, str], change: dict[str, Any], field: str
) -> None:
    server = serve()
    asked = RECIPE.replace(change | {"batching.max_requests": 3})
    status, answer = ask(server.url + "/control/recipe", auth, asked.model_dump(mode="json"))
    assert (status, answer["error"]["param"]) == (400, field)
    assert server.engine.stats().max_requests == 64


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"dtype": "fp64"}'])
def test_a_malformed_recipe_is_refused(serve: Serve, auth: dict[str, str], body: bytes) -> None:
    status, answer = ask(serve().url + "/control/recipe", auth, body)
    assert (status, answer["error"]["kind"]) == (400, "recipe")


def test_a_held_worker_keeps_its_recipe_until_released(serve: Serve, auth: dict[str, str]) -> None:
    url = serve().url + "/control/"
    assert ask(url + "hold", auth, {"purpose": "benchmark", "pid": os.getpid()}) == (200, {"held_for": "benchmark"})
    assert ask(url + "hold", auth, {"purpose": "another", "pid": os.getpid()})[0] == 409
    status, answer = ask(url + "recipe", auth, RECIPE.model_dump(mode="json"))
    assert (status, answer["error"]["message"]) == (409, "The worker is held: benchmark.")
    assert ask(url + "release", auth, {}) == (200, {"held_for": None})
    assert ask(url + "recipe", auth, RECIPE.model_dump(mode="json"))[0] == 200


def test_a_hold_ends_with_the_process_that_measures(serve: Serve, auth: dict[str, str]) -> None:
    url = serve().url + "/control/"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as measuring:
        assert ask(url + "hold", auth, {"purpose": "benchmark", "pid": measuring.pid})[0] == 200
        assert ask(url + "recipe", auth, RECIPE.model_dump(mode="json"))[0] == 409
        measuring.kill()
        while devices.process_started_s(measuring.pid) is not None:
            time.sleep(0.01)
        assert psutil.Process(measuring.pid).status() == psutil.STATUS_ZOMBIE  # its parent has not looked yet
        assert ask(url + "recipe", auth, RECIPE.model_dump(mode="json"))[0] == 200
    assert ask(url + "recipe", auth, RECIPE.model_dump(mode="json"))[0] == 200


def test_draining_lets_running_requests_end_and_refuses_new_ones(
    serve: Serve, auth: dict[str, str], model_id: str
) -> None:
    server = serve(end=False, token_s=0.02)
    body = {"model": model_id, "prompt": "x", "max_tokens": 20}
    answers: list[Any] = []
    running = threading.Thread(target=lambda: answers.append(ask(server.url + "/v1/completions", {}, body)))
    running.start()
    server.wait_for(lambda: server.engine.stats().running == 1)
    assert ask(server.url + "/control/drain", auth, {"timeout_s": 20}) == (200, {"drained": True})
    running.join()
    assert answers[0][1]["usage"]["completion_tokens"] == 20
    assert ask(server.url + "/v1/completions", {}, body)[0] == 503
    assert ask(server.url + "/health", {}) == (503, {"status": "draining"})
    assert ask(server.url + "/control/state", auth)[1]["state"] == "draining"


def test_a_drain_that_takes_too_long_says_so(serve: Serve, auth: dict[str, str], model_id: str) -> None:
    server = serve(end=False, token_s=0.02)
    body = {"model": model_id, "prompt": "x", "max_tokens": 50}
    running = threading.Thread(target=lambda: ask(server.url + "/v1/completions", {}, body))
    running.start()
    server.wait_for(lambda: server.engine.stats().running == 1)
    assert ask(server.url + "/control/drain", auth, {"timeout_s": 0.05}) == (200, {"drained": False})
    running.join()


def test_profile_gives_the_trace_s_path(serve: Serve, auth: dict[str, str]) -> None:
    from pathlib import Path

    url = serve().url + "/control/profile"
    status, answer = ask(url, auth, {"steps": 3})
    assert status == 200
    (trace,) = answer["traces"]
    assert (trace["path"], len(trace["steps"])) == (answer["trace"], 1)
    (event,) = json.loads(Path(answer["trace"]).read_text())["traceEvents"]
    assert event["name"] == "engine step"
    assert ask(serve().url + "/control/stop-profile", auth, {}) == (200, {"state": "stopping"})
    assert ask(url, auth, {"steps": 65})[0] == 400
    assert ask(url, auth, {"steps": 0})[1]["error"]["param"] == "steps"


def test_peaks_and_shutdown_reach_the_worker(serve: Serve, auth: dict[str, str]) -> None:
    server = serve()
    assert ask(server.url + "/control/reset-peaks", auth, {})[0] == 200
    assert ask(server.url + "/control/shutdown", auth, method="POST")[0] == 200
    assert server.calls == ["reset-peaks", "shutdown"]


def test_our_client_speaks_it(serve: Serve, auth: dict[str, str], model_id: str) -> None:
    server = serve("Hi €!", max_requests=1)

    async def story() -> None:
        async with ServerClient(server.url, "control-token") as client:
            assert (await client.state())["model"] == model_id
            stats, memory = await client.stats_and_memory()
            assert stats.max_requests == 1
            assert memory is not None
            assert memory.baseline_bytes == 123
            assert await client.models() == (model_id,)
            await client.reset_peaks()
            chunks = [chunk async for chunk in client.stream("/v1/completions", {"model": model_id, "prompt": "x"})]
            assert "".join(chunk.text for chunk in chunks) == "Hi €!"
            assert sum(len(chunk.token_ids) for chunk in chunks) == 8
            assert chunks[-1].usage is not None
            assert chunks[-1].usage["timing"]["prefill_ms"] >= 0
            with pytest.raises(RequestRejected, match="not supported"):
                _ = [
                    c
                    async for c in client.stream(
                        "/v1/completions", {"model": model_id, "prompt": "x", "suffix": "y"}
                    )
                ]
            await client.set_recipe(RECIPE.replace({"batching.max_requests": 2}))
            with pytest.raises(RequestRejected, match="dtype"):
                await client.set_recipe(RECIPE.replace({"dtype": "bf16"}))
            await client.post_control("hold", {"purpose": "bench", "pid": os.getpid()})
            with pytest.raises(Busy, match="bench"):
                await client.set_recipe(RECIPE)
            assert await client.drain(5) == {"drained": True}
            with pytest.raises(QueueFull):
                _ = [c async for c in client.stream("/v1/completions", {"model": model_id, "prompt": "x"})]
            await client.shutdown()

    asyncio.run(story())
    assert server.calls == ["reset-peaks", "shutdown"]
    assert auth


def test_a_live_change_that_does_not_go_together_is_refused(serve: Serve, auth: dict[str, str]) -> None:
    server = serve()
    asked = RECIPE.replace({"batching.mode": "static", "prefix_cache": True}).model_dump(mode="json")
    status, answer = ask(server.url + "/control/recipe", auth, asked)
    assert status == 400
    assert "shares no pages" in answer["error"]["message"]
    assert ask(server.url + "/control/state", auth, None, "GET")[1]["recipe"]["batching"]["mode"] == "off"


def test_while_one_change_is_made_another_and_a_measurement_are_refused(
    serve: Serve, auth: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    inside, go_on = threading.Event(), threading.Event()
    apply = server.engine.apply_live

    def slow(recipe: Recipe) -> None:
        inside.set()
        assert go_on.wait(30)
        apply(recipe)

    monkeypatch.setattr(server.engine, "apply_live", slow)
    url, asked = server.url + "/control", RECIPE.replace({"batching.max_requests": 3}).model_dump(mode="json")
    changing = threading.Thread(target=ask, args=(f"{url}/recipe", auth, asked))
    changing.start()
    assert inside.wait(30)
    assert ask(f"{url}/recipe", auth, asked)[0] == 409
    assert ask(f"{url}/hold", auth, {"purpose": "measuring", "pid": os.getpid()})[0] == 409
    go_on.set()
    changing.join(30)
    assert ask(f"{url}/hold", auth, {"purpose": "measuring", "pid": os.getpid()})[0] == 200


def test_the_state_tells_the_kernel_of_the_mode_that_runs(serve: Serve, auth: dict[str, str]) -> None:
    server = serve()
    state = ask(server.url + "/control/state", auth, None, "GET")[1]
    before = state["effective"].get("attention_backend")
    server.engine.kernel_name = "triton over pages"
    after = ask(server.url + "/control/state", auth, None, "GET")[1]["effective"]
    assert (before, after["attention_backend"]) == (None, "triton over pages")


def test_the_state_tells_what_preempted_requests_may_take_of_the_host(serve: Serve, auth: dict[str, str]) -> None:
    server = serve()
    assert ask(server.url + "/control/state", auth)[1]["effective"]["kv_host_limit_bytes"] is None
    server.engine._stats = replace(server.engine._stats, kv_host_limit_bytes=123)
    assert ask(server.url + "/control/state", auth)[1]["effective"]["kv_host_limit_bytes"] == 123
