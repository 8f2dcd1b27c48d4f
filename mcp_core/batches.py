"""Batches: many prompts sent to one worker at once, each with its own latency.

Everything runs on one asyncio loop. This file does not know how a worker batches what it is sent.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mcp_core.errors import McpError, QueueFull, RequestRejected
from mcp_core.generation import Sampling
from mcp_core.replies import Reply, Server, Servers, read_reply
from mcp_core.results import Failure
from mcp_core.views import BatchItemView

__all__ = ["Batches"]

# The worker's queue is shared with chats: when it is full all the same, a prompt tries again after this.
QUEUE_RETRY_S = 0.2


@dataclass(eq=False, slots=True)
class _Item:
    index: int
    prompt: str
    reply: Reply
    state: Literal["waiting", "running", "ok", "failed", "cancelled"] = "waiting"

    def view(self) -> BatchItemView:
        return BatchItemView(
            self.index, self.prompt, self.state, self.reply.text, self.reply.stats(), self.reply.failure
        )


@dataclass(eq=False, slots=True)
class _Batch:
    worker_id: str
    items: list[_Item]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Batches:
    """All batches of this app, by an unguessable id. Times count from the start of the batch, waiting included."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._all: dict[str, _Batch] = {}

    def start(self, worker_id: str, prompts: Sequence[str], sampling: Sampling, max_tokens: int) -> str:
        """Send all prompts, as many at once as the worker holds. Raises as ``Servers.connect`` does."""
        if not prompts:
            raise RequestRejected("There are no prompts to send.", "Write one on each line.", param="prompts")
        server = self._servers.connect(worker_id)
        began_s, room = time.perf_counter(), asyncio.Semaphore(server.max_requests)
        batch = _Batch(worker_id, [_Item(index, text, Reply(began_s)) for index, text in enumerate(prompts)])
        batch.tasks = [
            asyncio.create_task(self._run(item, batch, server, room, sampling, max_tokens)) for item in batch.items
        ]
        bid = secrets.token_urlsafe(16)
        self._all[bid] = batch
        return bid

    def view(self, bid: str) -> tuple[BatchItemView, ...]:
        """Every item as it is now; empty for an unknown id."""
        return tuple(item.view() for item in self._all[bid].items) if bid in self._all else ()

    def stop(self, bid: str) -> None:
        """Stop what has not ended; what has come is kept."""
        batch = self._all.get(bid)
        for item, task in zip(batch.items, batch.tasks, strict=True) if batch else ():
            if item.state in ("waiting", "running"):
                item.state = "cancelled"
                task.cancel()

    def running_on(self, worker_id: str) -> bool:
        """Whether a prompt waits or runs on that worker."""
        batches = (batch for batch in self._all.values() if batch.worker_id == worker_id)
        return any(item.state in ("waiting", "running") for batch in batches for item in batch.items)

    async def close(self) -> None:
        """Stop every batch."""
        for bid in self._all:
            self.stop(bid)
        tasks = (task for batch in self._all.values() for task in batch.tasks)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(
        self,
        item: _Item,
        batch: _Batch,
        server: Server,
        room: asyncio.Semaphore,
        sampling: Sampling,
        max_tokens: int,
    ) -> None:
        async with room:
            item.state = "running"
            try:
                await _ask(item, server, sampling, max_tokens)
            except McpError as error:
                item.reply.fail(Failure.of(error))
        failure = item.reply.failure
        if failure and failure.kind == "worker":
            item.reply.fail(await self._servers.cause_of_death(batch.worker_id) or failure)
        item.state = "failed" if failure else "ok"


async def _ask(item: _Item, server: Server, sampling: Sampling, max_tokens: int) -> None:
    message = {"role": "user", "content": item.prompt}
    while True:
        try:
            await read_reply(item.reply, server, [message], sampling, max_tokens)
        except QueueFull:
            await asyncio.sleep(QUEUE_RETRY_S)
        else:
            return
