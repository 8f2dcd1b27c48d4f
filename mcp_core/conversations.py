"""Conversations: chats whose replies are read here, so that they outlive the page that asked.

Everything runs on one asyncio loop. This file does not know how a worker is found or how a page draws.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from mcp_core.errors import Busy, ContextTooLong, InputError, McpError, ModelNotFound
from mcp_core.generation import EngineStats, Sampling
from mcp_core.recipe import Recipe
from mcp_core.replies import Reply, Server, Servers, guesses_between, read_reply
from mcp_core.results import Failure
from mcp_core.views import ConversationView, Message

__all__ = ["UNSEEN_S", "Conversations"]

# A reply that nobody has looked at for this long is stopped; a visitor not seen for this long is not counted.
UNSEEN_S = 120.0
# Regenerated replies that are remembered with the one that took their place.
REPLACED_KEPT = 8


@dataclass(eq=False, slots=True)
class _Conversation:
    """``messages`` are question, answer, question, answer...; while ``reply`` is set the last answer is missing."""

    id: str
    worker_id: str
    system: str
    seen_s: float
    messages: list[Message] = field(default_factory=list)
    reply: Reply | None = None
    task: asyncio.Task[None] | None = None
    dropped_turns: int = 0
    context_tokens: int | None = None
    trace_ms: tuple[float, ...] = ()
    recipe: Recipe | None = None  # what serves the reply that is being written
    replaced: tuple[Message, ...] = ()

    def to_send(self) -> list[dict[str, str]]:
        """The system prompt, the turns that fit and were answered, and the last question."""
        turns = list(zip(self.messages[0:-1:2], self.messages[1::2], strict=True))[self.dropped_turns :]
        answered = [message for turn in turns if turn[1].content for message in turn]
        opening = [Message("system", self.system)] if self.system else []
        sent = (*opening, *answered, self.messages[-1])
        return [{"role": message.role, "content": message.content} for message in sent]

    def drop_oldest(self) -> bool:
        """Leave one more turn out of what is sent; False when only the question itself is left."""
        if self.dropped_turns >= len(self.messages) // 2:
            return False
        self.dropped_turns += 1
        return True

    def settle(self, reply: Reply) -> None:
        """The reply has ended: it becomes a message. One that is no longer this conversation's is ignored."""
        if self.reply is not reply:
            return
        ended = (reply.text, reply.stats(), reply.finish_reason, reply.failure)
        self.messages.append(Message("assistant", *ended, self.recipe, self.replaced))
        self.trace_ms = tuple(reply.trace_ms)
        self.context_tokens = reply.context_tokens  # of a stopped reply the server has not counted them
        self.reply = None

    def break_off(self, failure: Failure | None = None) -> None:
        """Stop the reply that is being written; what has come is kept."""
        if self.reply is None or self.task is None:
            return
        self.reply.finish_reason, self.reply.failure = "cancelled", failure
        self.settle(self.reply)
        self.task.cancel()

    def restart_from(self, count: int) -> None:
        """Keep the first ``count`` messages; what has to be left out is found anew."""
        self.break_off()
        del self.messages[count:]
        self.dropped_turns, self.context_tokens, self.trace_ms = 0, None, ()

    def view(self, max_context: int | None) -> ConversationView:
        """As a page shows it: the system prompt first, the answer that is being written last."""
        opening = (Message("system", self.system),) if self.system else ()
        growing = (Message("assistant", self.reply.text),) if self.reply else ()
        return ConversationView(
            id=self.id,
            worker_id=self.worker_id,
            messages=(*opening, *self.messages, *growing),
            streaming=self.reply is not None,
            dropped=2 * self.dropped_turns,
            context_tokens=self.context_tokens,
            max_context=max_context,
            trace=tuple(self.reply.trace_ms) if self.reply else self.trace_ms,
        )


class Conversations:
    """All conversations of this app. Ids are unguessable: knowing one is the right to read it."""

    def __init__(self, servers: Servers, clock: Callable[[], float] = time.monotonic) -> None:
        self._servers = servers
        self._clock = clock
        self._all: dict[str, _Conversation] = {}

    def new(self, worker_id: str, system: str = "") -> str:
        """Begin one. Raises WorkerDied or Busy when the worker cannot be asked."""
        self._servers.connect(worker_id)
        cid = secrets.token_urlsafe(16)
        self._all[cid] = _Conversation(cid, worker_id, system, self._clock())
        return cid

    def view(self, cid: str) -> ConversationView | None:
        """As it is now; asking counts as being there."""
        found = self._all.get(cid)
        if found is None:
            return None
        found.seen_s = self._clock()
        return found.view(self._servers.max_context(found.worker_id))

    def send(self, cid: str, text: str, sampling: Sampling, max_tokens: int) -> None:
        """Add a question and begin to read its answer. Raises Busy while one is being written."""
        found = self._idle(cid)
        server = self._servers.connect(found.worker_id)
        found.messages.append(Message("user", text))
        self._answer(found, server, sampling, max_tokens)

    def regenerate(self, cid: str, sampling: Sampling, max_tokens: int) -> None:
        """Replace the last answer."""
        found = self._idle(cid)
        if not found.messages:
            raise InputError("There is no reply to generate again.", "Send a message first.")
        server = self._servers.connect(found.worker_id)
        last = found.messages.pop()
        before = (*last.replaced, replace(last, replaced=()))
        self._answer(found, server, sampling, max_tokens, before[-REPLACED_KEPT:])

    def edit(self, cid: str, index: int, text: str, sampling: Sampling, max_tokens: int) -> None:
        """Replace the question at ``index`` of the view's messages, and everything after it."""
        found = self._idle(cid)
        position = index - (1 if found.system else 0)
        if not 0 <= position < len(found.messages) or found.messages[position].role != "user":
            raise InputError(f"Message {index} is not one of yours.", "Only questions can be edited.")
        server = self._servers.connect(found.worker_id)
        found.restart_from(position)
        found.messages.append(Message("user", text))
        self._answer(found, server, sampling, max_tokens)

    def stop(self, cid: str) -> None:
        """Stop the answer that is being written and keep what has come."""
        self._get(cid).break_off()

    def set_system(self, cid: str, text: str) -> None:
        """Change the system prompt, from the next answer on; empty is none."""
        self._get(cid).system = text

    def clear(self, cid: str) -> None:
        """Forget all messages; the system prompt stays."""
        self._get(cid).restart_from(0)

    def use_worker(self, cid: str, worker_id: str) -> None:
        """Ask another worker from the next answer on."""
        found = self._get(cid)
        self._servers.connect(worker_id)
        found.worker_id, found.dropped_turns = worker_id, 0

    def users(self, worker_id: str) -> int:
        """How many conversations with that worker have been looked at lately."""
        since_s = self._clock() - UNSEEN_S
        return sum(each.worker_id == worker_id and each.seen_s >= since_s for each in self._all.values())

    def streaming_on(self, worker_id: str) -> bool:
        """Whether an answer is being written by that worker."""
        return any(each.reply is not None and each.worker_id == worker_id for each in self._all.values())

    def stop_unseen(self) -> None:
        """Stop answers that nobody waits for any more."""
        since_s = self._clock() - UNSEEN_S
        for each in self._all.values():
            if each.reply is not None and each.seen_s < since_s:
                message = f"Stopped: nobody has looked at this conversation for {UNSEEN_S:.0f} s."
                each.break_off(Failure(kind="cancelled", message=message, hint="Regenerate to go on."))

    async def close(self) -> None:
        """Stop every answer."""
        tasks = [each.task for each in self._all.values() if each.task]
        for each in self._all.values():
            each.break_off()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _answer(
        self,
        found: _Conversation,
        server: Server,
        sampling: Sampling,
        max_tokens: int,
        replaced: tuple[Message, ...] = (),
    ) -> None:
        found.seen_s, found.recipe, found.replaced = self._clock(), server.recipe, replaced
        found.reply = Reply()
        found.task = asyncio.create_task(self._read(found, found.reply, server, sampling, max_tokens))

    async def _read(
        self, found: _Conversation, reply: Reply, server: Server, sampling: Sampling, max_tokens: int
    ) -> None:
        """Read one answer to its end, whatever that is."""
        worker_id = found.worker_id
        try:
            async with _guesses_counted(reply, server):
                await _read_what_fits(found, reply, server, sampling, max_tokens)
        except McpError as error:
            reply.fail(Failure.of(error))
        finally:
            if reply.failure and reply.failure.kind == "worker":
                reply.fail(await self._servers.cause_of_death(worker_id) or reply.failure)
            found.settle(reply)

    def _idle(self, cid: str) -> _Conversation:
        found = self._get(cid)
        if found.reply is not None:
            raise Busy("A reply is still being written.", "Stop it first, or wait.")
        return found

    def _get(self, cid: str) -> _Conversation:
        if cid not in self._all:
            raise ModelNotFound("There is no such conversation any more.", "Start a new one.")
        return self._all[cid]


@contextlib.asynccontextmanager
async def _guesses_counted(reply: Reply, server: Server) -> AsyncIterator[None]:
    """Note the guesses of a worker that speculates; the reply's clock starts once its counters were read."""
    if server.recipe is None or server.recipe.speculation == "off":
        yield
        return
    before = await _counters(server)
    reply.sent_s = time.perf_counter()
    yield
    after = await _counters(server)
    if before is not None and after is not None:
        reply.guesses = guesses_between(before, after)


async def _counters(server: Server) -> EngineStats | None:
    """None when the worker does not tell: the reply itself will say why."""
    with contextlib.suppress(McpError):
        return await server.client.stats()
    return None


async def _read_what_fits(
    found: _Conversation, reply: Reply, server: Server, sampling: Sampling, max_tokens: int
) -> None:
    """Read one answer; when the context is full, ask again with fewer and fewer old turns.

    A question that is too long by itself drops nothing: the next one finds the conversation as it was.
    """
    dropped_before = found.dropped_turns
    while True:
        try:
            return await read_reply(reply, server, found.to_send(), sampling, max_tokens)
        except ContextTooLong:
            if not found.drop_oldest():
                found.dropped_turns = dropped_before
                raise
