"""Supervisor: starts worker processes, follows them from spawn to end, and ends them with the app.

This file does not know what a worker does inside: it writes one line to its stdin, reads JSON lines from its
stdout and talks to its control routes. Everything here runs on one asyncio loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from mcp_core import devices
from mcp_core.child_process import ChildProcess, lines_of, oom_kills
from mcp_core.engines import FOREIGN
from mcp_core.errors import Cancelled, LoadFailed, McpError, error_from
from mcp_core.recipe import Recipe
from mcp_core.serving.worker_record import Worker, WorkerLog, death_of
from mcp_core.views import Progress

if TYPE_CHECKING:
    import aiohttp

__all__ = ["WORKER_COMMAND", "Supervisor", "Worker"]

WORKER_COMMAND = (sys.executable, "-m", "mcp_core.serving.worker")
# The same protocol, for a server of another engine.
FOREIGN_COMMAND = (sys.executable, "-m", "mcp_core.serving.foreign")

# How long a worker may take to end after it was asked, and after SIGTERM; s.
SHUTDOWN_GRACE_S = 5.0
TERMINATE_GRACE_S = 3.0
# A grandchild may hold a dead worker's pipes open; its last lines are not waited for longer than this.
LAST_LINES_S = 1.0


class Supervisor:
    """Any number of workers. ``command`` starts one; it speaks the protocol of mcp_core.serving.worker.

    ``within`` are ids of leases by which a measurement holds the device that these workers are a part of.
    """

    def __init__(self, command: Sequence[str] = WORKER_COMMAND, *, within: Collection[str] = ()) -> None:
        self.workers: dict[str, Worker] = {}
        self._command = tuple(command)
        self._within = frozenset(within)
        self._lives: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    async def start(
        self,
        recipe: Recipe,
        *,
        port: int = 0,
        hub_token: str | None = None,
        force: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        token: str | None = None,
    ) -> Worker:
        """Check the Recipe, start a worker and wait until it answers. Port 0 takes any free one.

        ``token`` is that of its control routes; None draws one that nobody else knows.

        Raises what ``admission.admit`` raises before anything is started, Busy while the device is being
        measured, and the worker's own failure after.
        """
        from mcp_core.serving.admission import admit

        admitted = await asyncio.to_thread(admit, recipe, hub_token=hub_token, force=force)
        worker = self.launch(
            admitted, port=port, hub_token=hub_token, force=force, on_progress=on_progress, token=token
        )
        try:
            await worker.settled.wait()
        except asyncio.CancelledError:
            await self.stop(worker.id)
            raise
        if worker.failure:
            raise error_from(worker.failure.model_dump())
        return worker

    def launch(
        self,
        recipe: Recipe,
        *,
        port: int = 0,
        hub_token: str | None = None,
        force: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        token: str | None = None,
    ) -> Worker:
        """Start a worker for an admitted Recipe and return at once. Raises Busy."""
        lease = devices.acquire(recipe.device, "chat", recipe.model.id, besides=self._within)
        worker_id, token = f"worker-{secrets.token_hex(4)}", token or secrets.token_urlsafe(32)
        log = WorkerLog(worker_id, hidden=(token, hub_token) if hub_token else (token,))
        worker = Worker(worker_id, recipe, token, lease, log, on_progress)
        order = {
            "recipe": recipe.model_dump(mode="json"),
            "token": token,
            "port": port,
            "hub_token": hub_token,
            "force": force,
        }
        self.workers[worker.id] = worker
        worker.life = asyncio.create_task(self._live(worker, json.dumps(order)))
        self._lives.add(worker.life)
        worker.life.add_done_callback(self._lives.discard)
        return worker

    async def stop(self, worker_id: str) -> None:
        """End a worker: asked over HTTP, then SIGTERM, then SIGKILL to its group. One that loads is cancelled."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        if worker.status == "starting":
            worker.end("stopped", Cancelled("Loading was cancelled."))
            await worker.spawned.wait()
        elif worker.status == "ready":
            worker.end("stopped")
            await self._ask_to_end(worker)
        if worker.process is not None:
            await worker.process.terminate(TERMINATE_GRACE_S)
        assert worker.life is not None
        await asyncio.shield(worker.life)

    async def wait(self, worker_id: str) -> Worker:
        """The worker, once its process has ended."""
        worker = self.workers[worker_id]
        assert worker.life is not None
        await asyncio.shield(worker.life)
        return worker

    def forget(self, worker_id: str) -> None:
        """Drop a worker that is neither starting nor ready; its process may still be ending."""
        worker = self.workers.get(worker_id)
        if worker is not None and worker.status not in ("starting", "ready"):
            del self.workers[worker_id]

    async def close(self) -> None:
        """End every worker and wait for it."""
        await asyncio.gather(*(self.stop(worker_id) for worker_id in list(self.workers)))
        await asyncio.gather(*self._lives)
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _live(self, worker: Worker, order: str) -> None:
        """The whole life of one worker, from spawn to end."""
        kills_before = oom_kills()
        try:
            env = _environment(worker.recipe)
            command = FOREIGN_COMMAND if worker.recipe.engine in FOREIGN else self._command
            worker.process = process = await ChildProcess.spawn(command, order, env=env)
            worker.pid = process.pid
            worker.spawned.set()
            readers = (
                asyncio.create_task(self._read_events(worker, process)),
                asyncio.create_task(worker.log.follow(process.stderr)),
            )
            code = await process.wait()
            await _finish(readers)
            await process.close()
            if worker.status in ("starting", "ready"):
                error = death_of(worker, code, oom=oom_kills() > kills_before)
                worker.end("failed" if worker.status == "starting" else "died", error)
        except OSError as error:
            worker.end("failed", LoadFailed(f"The worker process could not be started: {error}."))
        finally:
            worker.spawned.set()
            worker.settled.set()
            worker.log.close()
            worker.lease.release()

    async def _read_events(self, worker: Worker, process: ChildProcess) -> None:
        async for line in lines_of(process.stdout):
            event = _event(line)
            if event is None:
                worker.log.add(line)  # a library that prints
            else:
                await self._take(worker, process, event)

    async def _take(self, worker: Worker, process: ChildProcess, event: dict[str, Any]) -> None:
        if worker.status != "starting":
            return
        if event["event"] == "progress":
            worker.report(str(event["stage"]), event.get("fraction"), str(event.get("message", "")))
        elif event["event"] == "failed":
            worker.end("failed", error_from(event["failure"]))
            await process.terminate(TERMINATE_GRACE_S)
        elif event["event"] == "ready":
            await self._greet(worker, process, int(event["port"]), int(event.get("control_port", event["port"])))

    async def _greet(self, worker: Worker, process: ChildProcess, port: int, control_port: int) -> None:
        """First contact with a worker that says it is ready."""
        # aiohttp takes a third of a second to import: not on the loop, and not before there is a worker.
        client = await asyncio.to_thread(_import_client)
        if self._session is None:
            self._session = client.open_session()
        worker.url, worker.control_url = (f"http://127.0.0.1:{each}" for each in (port, control_port))
        worker.client = client.ServerClient(worker.url, worker.token, self._session, worker.control_url)
        try:
            worker.greeted(await worker.client.state())
        except McpError as error:
            worker.end("failed", error)
            await process.terminate(TERMINATE_GRACE_S)

    async def _ask_to_end(self, worker: Worker) -> None:
        assert worker.client is not None
        assert worker.process is not None
        with contextlib.suppress(McpError):
            await worker.client.shutdown()
        worker.process.let_go()
        await worker.process.ends_within(SHUTDOWN_GRACE_S)


def _import_client() -> Any:
    from mcp_core.serving import client

    return client


def _environment(recipe: Recipe) -> dict[str, str]:
    threads = str(recipe.threads or 1)
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        **(_huge_pages() if recipe.engine == "llama.cpp" else {}),
    }


def _huge_pages() -> dict[str, str]:
    """What glibc maps large blocks with, read as a process starts: llama.cpp's weights are in one of them.

    Scattered over pages of 4 KiB they made a token of SmolLM2-135M take 1.29 times as long (14.3 against 11.1 ms
    on one thread of an EPYC, 12.7 when the file is mapped). torch's weights gained nothing. Others ignore it.
    """
    name, wanted = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
    return {name: ":".join(filter(None, (os.environ.get(name), wanted)))}


def _event(line: str) -> dict[str, Any] | None:
    """A protocol line, or None for anything else that landed on stdout."""
    if not line.startswith("{"):
        return None
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) and "event" in document else None


async def _finish(readers: Sequence[asyncio.Task[None]]) -> None:
    """Read what a dead worker still has in its pipes, not for long."""
    _, late = await asyncio.wait(readers, timeout=LAST_LINES_S)
    for task in late:
        task.cancel()
    await asyncio.wait(readers)
