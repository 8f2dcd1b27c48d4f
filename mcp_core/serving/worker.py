"""The worker process: ``python -m mcp_core.serving.worker``. One model, loaded, checked and served.

Stdin: one JSON line, the order; the process ends when stdin does. Stdout: JSON lines, progress, then ready or
failed. Stderr: the log. What libraries print goes there too. This file does not know who started it, nor whether
the model fits (that was checked before).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from mcp_core import conflicts, hardware, paths
from mcp_core.errors import LoadFailed, McpError, RecipeError
from mcp_core.hardware import Hardware
from mcp_core.memory_readings import MemoryAnalysis, ModuleMemory
from mcp_core.models import catalog, footprint
from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.draft_memory import Draft, draft_recipe
from mcp_core.models.served_load import ServedLoad
from mcp_core.monitoring.prometheus import WorkerMetrics
from mcp_core.paths import home
from mcp_core.recipe import Recipe
from mcp_core.results import Prediction
from mcp_core.serving.api import create_app
from mcp_core.serving.control import WorkerControl, control_routes
from mcp_core.serving.http_server import HttpServer, http_config
from mcp_core.serving.inbox import Inboxes
from mcp_core.serving.listener import HOST, bind, listen
from mcp_core.serving.memory_routes import MemoryAnswers
from mcp_core.serving.memory_timeline import MemoryRecorder, ServingPhases
from mcp_core.serving.service import Service
from mcp_core.serving.worker_channel import Channel, Order, die_first, end_with_stdin
from mcp_core.serving.worker_memory import WorkerMemory
from mcp_core.workload import Workload

if TYPE_CHECKING:
    from mcp_core.inference.engine import Engine
    from mcp_core.inference.llama_cpp_engine import LlamaCppEngine
    from mcp_core.inference.llama_cpp_model import LlamaCppModel
    from mcp_core.models.loaded import LoadedModel
    from mcp_core.serving.cuda_memory import CudaCounters

__all__ = ["main"]

# How long running requests may go on after the worker was asked to end.
DRAIN_S = 2.0

_log = logging.getLogger(__name__)


def main() -> int:
    """The worker's life; the exit code."""
    started_s = time.monotonic()
    channel = Channel.take_stdout()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while loading, Ctrl-C simply ends it
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    die_first()
    try:
        order = Order.read(sys.stdin.readline())
        threading.Thread(target=end_with_stdin, name="stdin", daemon=True).start()
        _Worker(order, channel, started_s).run()
    except McpError as error:
        channel.failed(error)
        return 1
    except Exception as error:  # noqa: BLE001 - the process's boundary: any cause becomes one line for people
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0][:300]
        cause = f"The worker failed: {type(error).__name__}: {first}"
        channel.failed(LoadFailed(cause, "The worker's log has the whole story."))
        return 1
    return 0


class _Worker:
    """Load, check, serve, end."""

    def __init__(self, order: Order, channel: Channel, started_s: float) -> None:
        self._order = order
        self._channel = channel
        self._started_s = started_s
        self._recorder = MemoryRecorder()
        self._counters: CudaCounters | None = None
        self._draft: Draft | None = None
        self._hardware = hardware.detect()
        self._recipe = conflicts.resolve(Recipe.from_dict(order.recipe), self._hardware)

    def run(self) -> None:
        # What can be refused is refused before the imports, which take seconds.
        conflicts.require_runnable(self._recipe, self._hardware)
        listener = bind(self._order.port)
        resolved = catalog.resolve(self._recipe.model, hub_token=self._order.hub_token)
        self._recipe = self._recipe.model_copy(update={"model": resolved.ref})
        self._recorder.start()
        self._counters = _import_heavy(self._recipe, self._hardware)
        memory = WorkerMemory(self._counters)
        self._recorder.watch(self._counters)
        loaded = self._load(resolved)
        # Not asyncio.run: at its end that waits for threads, such as one that records a trace.
        asyncio.Runner().run(self._serve(loaded, memory, listener))

    def _load(self, resolved: ResolvedModel) -> LoadedModel | LlamaCppModel:
        if self._recipe.engine == "llama.cpp":
            from mcp_core.inference import llama_cpp_model

            return llama_cpp_model.load(resolved, self._recipe, self._progress)
        from mcp_core.models import loader

        return loader.load(resolved, self._recipe, self._progress, self._order.hub_token)

    def _load_draft(self, loaded: LoadedModel) -> LoadedModel | None:
        """The model that guesses, in the same dtype on the same device. Raises RecipeError for other tokens."""
        recipe = draft_recipe(self._recipe)
        if recipe is None:
            return None
        from mcp_core.models import loader

        resolved = catalog.resolve(recipe.model, hub_token=self._order.hub_token)
        self._draft = Draft(recipe, resolved)
        draft = loader.load(resolved, recipe, self._progress, self._order.hub_token)
        if draft.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
            raise RecipeError(
                f"draft: {draft.title} has another vocabulary than {loaded.title}.",
                "Choose a smaller model of the same family.",
            )
        return draft

    def _progress(self, stage: str, fraction: float | None, message: str) -> None:
        """A stage of loading is a phase of memory."""
        self._recorder.phase(stage)
        self._channel.progress(stage, fraction, message)

    def _engine(self, loaded: LoadedModel | LlamaCppModel, phases: ServingPhases) -> Engine | LlamaCppEngine:
        if self._recipe.engine == "llama.cpp":
            from mcp_core.inference.llama_cpp_engine import LlamaCppEngine

            return LlamaCppEngine(cast("LlamaCppModel", loaded), self._recipe, phases)
        from mcp_core.inference.engine import Engine

        model = cast("LoadedModel", loaded)
        return Engine(model, self._recipe, phases, self._progress, self._load_draft(model))

    async def _serve(
        self, loaded: LoadedModel | LlamaCppModel, memory: WorkerMemory, listener: socket.socket
    ) -> None:
        inboxes = Inboxes(asyncio.get_running_loop())
        phases = ServingPhases(self._recorder, inboxes.deliver)
        engine = self._engine(loaded, phases)
        loaded = self._warm_up(engine, loaded)
        model_id = self._recipe.model.id
        metrics = WorkerMetrics(model_id, engine.stats, memory.read)
        service = Service(model_id, loaded, engine, inboxes, metrics)
        await self._check(engine, service)
        predictor = self._predictor(self._recipe, loaded)
        memory.settle(loaded.weights_bytes, predictor.at().kv_bytes_per_token)
        phases.begin(lambda: bool((stats := engine.stats()).running or stats.queued))
        await self._answer(service, memory, self._answers(loaded, predictor), listener)
        self._recorder.stop()
        await asyncio.to_thread(engine.close)
        await service.close()

    def _warm_up(
        self, engine: Engine | LlamaCppEngine, loaded: LoadedModel | LlamaCppModel
    ) -> LoadedModel | LlamaCppModel:
        """The same, knowing which attention kernel ran."""
        compiles = self._recipe.attention == "flex_attention"
        note = " flex_attention is compiled now, which takes up to a minute." if compiles else ""
        self._progress("warm-up", None, f"Generating the first tokens.{note}")
        ran = {"attention_backend": engine.warm_up()}
        return replace(loaded, effective=loaded.effective.model_copy(update=ran))

    async def _check(self, engine: Engine | LlamaCppEngine, service: Service) -> None:
        engine.start()
        self._progress("check", None, "Checking the chat template.")
        await service.warm_up()

    def _modules(
        self, loaded: LoadedModel | LlamaCppModel, predictor: footprint.Predictor
    ) -> tuple[ModuleMemory, ...]:
        if self._recipe.engine == "llama.cpp":  # its tensors cannot be looked at; they are the file's
            return tuple(ModuleMemory(name=each.name, kind="GGUF", bytes=each.bytes) for each in predictor.modules)
        from mcp_core.memory.module_memory import memory_by_module

        return memory_by_module(cast("LoadedModel", loaded).model)

    def _predictor(self, recipe: Recipe, loaded: LoadedModel | LlamaCppModel) -> footprint.Predictor:
        return footprint.Predictor(recipe, loaded.resolved, self._hardware, draft=self._draft)

    def _answers(self, loaded: LoadedModel | LlamaCppModel, predictor: footprint.Predictor) -> MemoryAnswers:
        """What the control routes tell about memory."""
        modules = self._modules(loaded, predictor)
        counters = self._counters
        reason = "" if counters else "torch keeps such a record of NVIDIA devices only; this model is on the CPU."

        def analysis(most: int | None) -> MemoryAnalysis:
            timeline = self._recorder.timeline(most)
            return MemoryAnalysis(timeline=timeline, modules=modules, no_snapshot=reason)

        def predict(workload: Workload, recipe: Recipe) -> Prediction:
            load = ServedLoad.of_workload(workload, recipe, loaded.max_context)
            return self._predictor(recipe, loaded).at(load).as_prediction()

        record = (lambda seconds: counters.snapshot(seconds, paths.home("profiles"))) if counters else None
        return MemoryAnswers(analysis, predict, record, reason)

    async def _answer(
        self, service: Service, memory: WorkerMemory, answers: MemoryAnswers, listener: socket.socket
    ) -> None:
        """Serve HTTP until asked to end."""
        ending = asyncio.Event()
        control = WorkerControl(
            service=service,
            recipe=self._recipe,
            token=self._order.token,
            load_s=time.monotonic() - self._started_s,
            memory=memory.read,
            reset_peaks=memory.reset_peaks,
            shut_down=ending.set,
            answers=answers,
        )
        port = listen(listener)
        app = create_app(service, control_routes(control), hosts=(HOST,))
        server = HttpServer(http_config(app), lambda: self._channel.ready(port))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await ending.wait()
        await control.drain(DRAIN_S)
        await asyncio.to_thread(service.engine.close)  # streams still open end with an error event
        server.should_exit = True
        await serving


def _import_heavy(recipe: Recipe, machine: Hardware) -> CudaCounters | None:
    """Import what takes seconds and memory, before the baseline is read; the device's counters, if it has any."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home("compiled")))  # read by torch as it is imported
    if recipe.engine == "llama.cpp":
        import mcp_core.inference.llama_cpp_engine

        return None
    from mcp_core.memory.host_allocator import bound_kernel_caches, return_large_blocks

    return_large_blocks()
    bound_kernel_caches()
    import torch

    import mcp_core.inference.engine
    import mcp_core.models.loader  # noqa: F401

    torch.set_num_threads(recipe.threads or 1)
    device = machine.device(recipe.device)
    if device is None or device.kind != "cuda":
        return None
    from mcp_core.serving.cuda_memory import CudaCounters

    return CudaCounters(recipe.device)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
