"""The process beside a foreign server: ``python -m mcp_core.serving.foreign``. It speaks a worker's protocol.

It starts vLLM's or SGLang's server from that engine's own interpreter, follows its log, answers ``/control`` in its
place, and ends it, with all that it started, when stdin ends: no orphan keeps a device. This file does not know
flags (``engines/``) or who started it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from mcp_core import conflicts, hardware, paths
from mcp_core.engines import FOREIGN, not_carried
from mcp_core.engines.counters import engine_stats
from mcp_core.engines.interpreters import interpreter
from mcp_core.engines.launch import Given, running_requests
from mcp_core.engines.log_lines import stage_of
from mcp_core.engines.model_files import fetched_folder, special_ids
from mcp_core.errors import LoadFailed, McpError, WorkerDied
from mcp_core.generation import EngineStats
from mcp_core.hardware import Device
from mcp_core.models import catalog
from mcp_core.models.architecture import DTYPE_BYTES, ResolvedModel
from mcp_core.models.footprint import resolve_max_context
from mcp_core.recipe import Recipe
from mcp_core.results import Effective, Memory
from mcp_core.serving.foreign_control import ForeignControl, create_control
from mcp_core.serving.foreign_memory import ForeignMemory
from mcp_core.serving.foreign_server import ForeignServer, version_of
from mcp_core.serving.http_server import HttpServer, http_config
from mcp_core.serving.listener import HOST, bind, listen
from mcp_core.serving.process_group import end_all, lead, members
from mcp_core.serving.worker_channel import Channel, Order, die_first

__all__ = ["end_as_the_server_did", "main", "memory_share"]

# How long the server may take to end after SIGTERM, and what it started after SIGKILL; s. Together less than the
# supervisor waits before it kills the group.
TERMINATE_GRACE_S = 1.5
KILL_GRACE_S = 1.0
LOOK_EVERY_S = 1.0
METRICS_TIMEOUT_S = 5.0
# Of a device's memory: what a server may take at most, and what is left of what is free.
_MOST_SHARE, _LEFT_SHARE, _LEAST_SHARE = 0.90, 0.02, 0.05


def memory_share(device: Device) -> float:
    """The part of the whole device's memory that a server may take: of what is free now, nearly all."""
    free = device.memory_free_bytes / max(1, device.memory_total_bytes)
    share = math.floor(min(_MOST_SHARE, free - _LEFT_SHARE) * 100) / 100
    return max(_LEAST_SHARE, share)


def main() -> int:
    """Its life; the exit code is the server's where that ended by itself."""
    started_s = time.monotonic()
    lead()
    channel = Channel.take_stdout()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    die_first()
    try:
        order = Order.read(sys.stdin.readline())
        # Not asyncio.run: at its end that waits for threads, such as one that downloads.
        return asyncio.Runner().run(_Foreign(order, channel, started_s).run())
    except McpError as error:
        channel.failed(error)
        return 1
    except Exception as error:  # noqa: BLE001 - the process's boundary: any cause becomes one line for people
        traceback.print_exc()
        channel.failed(
            LoadFailed(f"The engine's companion failed: {type(error).__name__}: {error}", "See its log.")
        )
        return 1


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is known before the server is started."""

    recipe: Recipe
    resolved: ResolvedModel
    device: Device
    python: Path
    given: Given


class _Foreign:
    """Prepare, start, answer, end."""

    def __init__(self, order: Order, channel: Channel, started_s: float) -> None:
        self._order = order
        self._channel = channel
        self._started_s = started_s
        self._ending = asyncio.Event()
        self._server: ForeignServer | None = None
        # Python would import from the folder it is started in: an empty one, with the key's file in it for a while.
        self._scratch = Path(tempfile.mkdtemp(dir=paths.home("engines")))

    async def run(self) -> int:
        """Until the server ends by itself, or stdin, SIGTERM or /control/shutdown ends it."""
        self._watch_for_the_end()
        living = asyncio.create_task(self._live())
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait((living, ending), return_when=asyncio.FIRST_COMPLETED)
            return await living if living.done() else 0
        finally:
            living.cancel()
            await self._end()

    def _watch_for_the_end(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)

        def watch_stdin() -> None:
            while os.read(0, 65_536):
                pass
            loop.call_soon_threadsafe(self._ending.set)

        threading.Thread(target=watch_stdin, name="stdin", daemon=True).start()

    async def _end(self) -> None:
        known = members()
        if self._server is not None:
            await self._server.end(TERMINATE_GRACE_S)
        await asyncio.to_thread(end_all, known, KILL_GRACE_S)
        shutil.rmtree(self._scratch, ignore_errors=True)

    async def _live(self) -> int:
        prepared = await asyncio.to_thread(self._prepare)
        engine = FOREIGN[prepared.recipe.engine]
        version = await version_of(prepared.python, engine.package, engine.title)
        memory = ForeignMemory(prepared.device)
        server = self._server = await self._start(prepared)
        url = f"http://{HOST}:{prepared.given.port}"
        looking = asyncio.create_task(_look_forever(memory))
        try:
            await server.healthy(url)
            for path, _ in engine.launch(prepared.recipe, prepared.given).files:
                path.unlink(missing_ok=True)
            memory.loaded()
            answering = self._answer(prepared, server, memory, version, url)
            return await _first_end(asyncio.create_task(server.wait()), answering)
        finally:
            looking.cancel()

    def _prepare(self) -> _Prepared:
        machine = hardware.detect()
        asked = Recipe.from_dict(self._order.recipe)
        conflicts.require_runnable(asked, machine)
        recipe = conflicts.resolve(asked, machine)
        python, device = interpreter(recipe.engine, recipe.engine_python), machine.device(recipe.device)
        assert python is not None and device is not None  # noqa: PT018 - both were required just now
        resolved = catalog.resolve(recipe.model, hub_token=self._order.hub_token)
        recipe = recipe.model_copy(update={"model": resolved.ref})
        given = Given(
            folder=fetched_folder(resolved, self._order.hub_token, self._fetching),
            draft=self._draft(recipe),
            max_context=resolve_max_context(recipe, resolved.architecture),
            port=_free_port(self._order.port),
            token=self._order.token,
            scratch=self._scratch,
            memory_share=memory_share(device),
            random_weights=resolved.random_weights,
        )
        return _Prepared(recipe, resolved, device, python, given)

    def _draft(self, recipe: Recipe) -> Path | None:
        if recipe.draft is None:
            return None
        resolved = catalog.resolve(recipe.draft, hub_token=self._order.hub_token)
        return fetched_folder(resolved, self._order.hub_token, self._fetching)

    def _fetching(self, fraction: float | None, message: str) -> None:
        self._channel.progress("download", fraction, message)

    async def _start(self, prepared: _Prepared) -> ForeignServer:
        engine = FOREIGN[prepared.recipe.engine]
        launch = engine.launch(prepared.recipe, prepared.given)
        for path, text in launch.files:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
        self._channel.progress("load", None, f"Starting {engine.title}.")
        command = (str(prepared.python), *launch.arguments)
        sys.stderr.write(f"{' '.join(command)}\n")
        return await ForeignServer.start(
            engine.title, self._order.token, command, launch.environment, self._scratch, self._line
        )

    def _line(self, line: str) -> None:
        """One line of the server's log: into ours, and told where it says how far loading is."""
        sys.stderr.write(f"{line}\n")
        stage = stage_of(line)
        if stage is not None:
            self._channel.progress(stage[0], None, stage[1])

    def _answer(
        self, prepared: _Prepared, server: ForeignServer, memory: ForeignMemory, version: str, url: str
    ) -> asyncio.Task[None]:
        """Answer /control in the server's place from now on; once it does, all is ready."""
        kv_bytes = _kv_bytes_per_token(prepared)
        control = ForeignControl(
            title=FOREIGN[prepared.recipe.engine].title,
            token=self._order.token,
            state=_state(prepared, server, version, time.monotonic() - self._started_s),
            stats=_stats_reader(prepared, server, url),
            memory=lambda: _memory(memory, server, kv_bytes),
            reset_peaks=memory.reset_peaks,
            shut_down=self._ending.set,
        )
        listener = bind(0)
        control_port = listen(listener)
        http = HttpServer(
            http_config(create_control(control)), lambda: self._channel.ready(prepared.given.port, control_port)
        )
        return asyncio.create_task(http.serve(sockets=[listener]))


async def _first_end(ended: asyncio.Task[int], answering: asyncio.Task[None]) -> int:
    """The server's exit code. Raises what ended the control routes, without which nobody can ask about it."""
    await asyncio.wait((ended, answering), return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        await answering
    return await ended


def _free_port(asked: int) -> int:
    """The asked port, or any that is free now; the server takes it in a moment. Raises PortInUse."""
    with bind(asked) as listener:
        port: int = listener.getsockname()[1]
    return port


async def _look_forever(memory: ForeignMemory) -> None:
    while True:
        await asyncio.to_thread(memory.look)
        await asyncio.sleep(LOOK_EVERY_S)


def _memory(memory: ForeignMemory, server: ForeignServer, kv_bytes_per_token: int) -> Memory:
    return memory.memory(server.learned.weights_bytes, kv_bytes_per_token)


def _kv_bytes_per_token(prepared: _Prepared) -> int:
    width = 1 if prepared.recipe.kv.kind == "quantized-fp8" else DTYPE_BYTES[prepared.recipe.dtype]
    return prepared.resolved.architecture.kv_elements_per_token * width


def _stats_reader(prepared: _Prepared, server: ForeignServer, url: str) -> Callable[[], Any]:
    headers = {"Authorization": f"Bearer {prepared.given.token}"}
    limit = aiohttp.ClientTimeout(total=METRICS_TIMEOUT_S)

    async def stats() -> EngineStats:
        try:
            async with (
                aiohttp.ClientSession(timeout=limit, raise_for_status=True) as session,
                session.get(f"{url}/metrics", headers=headers) as response,
            ):
                page = await response.text()
            return engine_stats(
                prepared.recipe.engine, page, running_requests(prepared.recipe), server.learned.kv_capacity_tokens
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WorkerDied("The engine's counters cannot be read.", "It may be ending.") from error

    return stats


def _state(prepared: _Prepared, server: ForeignServer, version: str, load_s: float) -> dict[str, Any]:
    recipe, resolved = prepared.recipe, prepared.resolved
    return {
        "state": "ready",
        "title": resolved.title,
        "model": recipe.model.id,
        "recipe": recipe.model_dump(mode="json"),
        "effective": _effective(prepared, server, version).model_dump(mode="json"),
        "vocab_size": resolved.architecture.vocab,
        "special_ids": sorted(special_ids(prepared.given.folder)),
        "eos_ids": [],
        "max_context": prepared.given.max_context,
        "load_s": load_s,
        "random_weights": resolved.random_weights,
        "pid": os.getpid(),
        "numerics_key": recipe.numerics_key,
    }


def _effective(prepared: _Prepared, server: ForeignServer, version: str) -> Effective:
    recipe = prepared.recipe
    return Effective(
        device=recipe.device,
        dtype=recipe.dtype,
        scheme=recipe.quantization.scheme,
        attention=server.learned.attention or "the engine's own",
        kv_kind=recipe.kv.kind if recipe.kv.kind == "quantized-fp8" else "paged",
        max_context=prepared.given.max_context,
        threads=recipe.threads or 1,
        batching_mode=recipe.batching.mode,
        engine=recipe.engine,
        engine_version=version,
        model_type=prepared.resolved.architecture.model_type,
        not_carried=not_carried(recipe),
    )


def end_as_the_server_did(code: int) -> None:
    """Leave with the server's exit code; of a signal, by the same signal, so that its name reaches people."""
    sys.stderr.flush()
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(abs(code))


if __name__ == "__main__":
    end_as_the_server_did(main())
