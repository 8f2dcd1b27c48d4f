"""The worker's application on a real uvicorn in a thread, around a scripted engine."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from mcp_core.generation import TokenEvent
from mcp_core.memory_readings import MemoryAnalysis, MemoryPhase, MemoryTimeline
from mcp_core.monitoring.prometheus import WorkerMetrics
from mcp_core.recipe import Recipe
from mcp_core.results import Memory, Prediction
from mcp_core.serving.api import create_app
from mcp_core.serving.control import WorkerControl, control_routes
from mcp_core.serving.fake_engine import EOS, FakeEngine, FakeModel
from mcp_core.serving.inbox import Inboxes
from mcp_core.serving.memory_routes import MemoryAnswers
from mcp_core.serving.service import Service
from mcp_core.serving.text import encode
from mcp_core.workload import Workload

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/tiny_llama.py

MODEL_ID = "smollm2-135m-instruct"
TOKEN = "control-token"


NO_SNAPSHOT = "This model is on the CPU."


def memory_answers() -> MemoryAnswers:
    """Answers with known values; the timeline's one phase tells how many points were asked for."""

    def analysis(most: int | None) -> MemoryAnalysis:
        phase = MemoryPhase(name="load", seconds=2.5, samples=most or 0)
        return MemoryAnalysis(timeline=MemoryTimeline(phases=(phase,)), no_snapshot=NO_SNAPSHOT)

    def predict(workload: Workload, recipe: Recipe) -> Prediction:
        context = workload.prompt_tokens.max + workload.output_tokens.max
        held = recipe.batching.max_requests
        return Prediction(weights_bytes=1, peak_bytes=held, load_peak_bytes=3, context_tokens=context)

    return MemoryAnswers(analysis, predict, None, NO_SNAPSHOT)


@dataclass
class AppServer:
    """A running application. ``calls`` records what the control routes asked of the worker."""

    url: str
    service: Service
    engine: Any
    control: WorkerControl
    loop: asyncio.AbstractEventLoop
    calls: list[str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.005)


class AppThread:
    """Owns the thread; ``stop`` joins it."""

    def __init__(self, model: Any, make_engine: Callable[[Callable[[list[TokenEvent]], None]], Any]) -> None:
        self._model = model
        self._make_engine = make_engine
        self._ready = threading.Event()
        self._server: uvicorn.Server | None = None
        self.app_server: AppServer | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def start(self) -> AppServer:
        self._thread.start()
        assert self._ready.wait(30)
        assert self.app_server is not None
        return self.app_server

    def stop(self) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        inboxes = Inboxes(loop)
        engine = self._make_engine(inboxes.deliver)
        engine.start()
        calls: list[str] = []
        memory = Memory(weights_bytes=self._model.weights_bytes, baseline_bytes=123)
        metrics = WorkerMetrics(MODEL_ID, engine.stats, lambda: memory)
        service = Service(MODEL_ID, self._model, engine, inboxes, metrics)
        control = WorkerControl(
            service=service,
            recipe=Recipe(device="cpu", threads=1, dtype="fp32"),
            token=TOKEN,
            load_s=1.5,
            memory=lambda: memory,
            reset_peaks=lambda: calls.append("reset-peaks"),
            shut_down=lambda: calls.append("shutdown"),
            answers=memory_answers(),
        )
        app = create_app(service, control_routes(control))
        listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.app_server = AppServer(url, service, engine, control, loop, calls)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        self._server = uvicorn.Server(config)
        serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        self._ready.set()
        await serving
        await asyncio.to_thread(engine.close)
        await service.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., AppServer]]:
    """``serve("text", end=True, model=..., make_engine=..., **engine)``: a server that writes that text."""
    threads: list[AppThread] = []

    def start(
        text: str = "Hello, world! This is a scripted reply.",
        *,
        end: bool = True,
        model: Any = None,
        make_engine: Callable[..., Any] | None = None,
        **engine: Any,
    ) -> AppServer:
        model = model or FakeModel()
        script = (*encode(model.tokenizer, text, add_special_tokens=False), *((EOS,) if end else ()))
        make = make_engine or (lambda sink: FakeEngine(sink, script=script, **engine))
        thread = AppThread(model, make)
        threads.append(thread)
        return thread.start()

    yield start
    for thread in threads:
        thread.stop()


@pytest.fixture
def auth() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def model_id() -> str:
    return MODEL_ID
