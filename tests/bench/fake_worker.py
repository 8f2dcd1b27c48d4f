"""A worker's HTTP side around the shipped fake engine, alone in its process, for ``http_cost.py``.

Arguments: seconds a step, how many requests the engine holds, and whether it catches up (0 or 1). Prints
``{"port": n}`` when it answers; then reads orders, one JSON line each, and answers each with one: ``{"direct":
n}``, the seconds that n tokens take without HTTP; ``{"render": n}``, the median ms of n renderings of /metrics.
Ends with its stdin.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import threading
import time
from typing import Any

from mcp_core.generation import GenerationRequest, TokenEvent
from mcp_core.monitoring.prometheus import WorkerMetrics
from mcp_core.serving.api import create_app
from mcp_core.serving.fake_engine import FakeEngine, FakeModel
from mcp_core.serving.http_server import HttpServer, http_config
from mcp_core.serving.inbox import Inboxes
from mcp_core.serving.listener import bind, listen
from mcp_core.serving.service import Service
from mcp_core.serving.text import encode
from mcp_core.serving.worker_memory import WorkerMemory

TEXT = "The quick brown fox jumps over the lazy dog, and writes “naïve” on its way home. "


async def main(token_s: float, max_requests: int, catches_up: bool) -> None:
    model = FakeModel()
    script = encode(model.tokenizer, TEXT, add_special_tokens=False)
    inboxes = Inboxes(asyncio.get_running_loop())
    engine = FakeEngine(
        inboxes.deliver, script=script, token_s=token_s, max_requests=max_requests, catches_up=catches_up
    )
    engine.start()
    metrics = WorkerMetrics("fake", engine.stats, WorkerMemory().read)
    service = Service("fake", model, engine, inboxes, metrics)
    listener = bind(0)
    port = listen(listener)
    server = HttpServer(http_config(create_app(service)), lambda: say({"port": port}))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        answer = direct if "direct" in order else render
        say(await asyncio.to_thread(answer, order, script, token_s, metrics))
    server.should_exit = True
    await serving


def direct(order: dict[str, int], script: tuple[int, ...], token_s: float, metrics: WorkerMetrics) -> Any:
    """One request straight into an engine of its own, from submitting it to its last event."""
    ended = threading.Event()

    def sink(events: list[TokenEvent]) -> None:
        if events[-1].finish:
            ended.set()

    engine = FakeEngine(sink, script=script, token_s=token_s, catches_up=False)
    engine.start()
    began_s = time.perf_counter()
    engine.submit(GenerationRequest("direct", (1, 2, 3), order["direct"], ignore_eos=True))
    ended.wait()
    seconds = time.perf_counter() - began_s
    engine.close()
    return {"seconds": seconds}


def render(order: dict[str, int], script: tuple[int, ...], token_s: float, metrics: WorkerMetrics) -> Any:
    def once() -> float:
        began_s = time.perf_counter()
        metrics.render()
        return (time.perf_counter() - began_s) * 1e3

    return {"ms": statistics.median(once() for _ in range(order["render"]))}


def say(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"))
