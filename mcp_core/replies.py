"""Reply: one chat completion while it is being read: its text, its pace, and how it ended.

This file does not know which conversation or batch it belongs to.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mcp_core.generation import EngineStats, Sampling
from mcp_core.recipe import Recipe
from mcp_core.results import Failure
from mcp_core.views import ReplyStats

if TYPE_CHECKING:
    from mcp_core.serving.client import Chunk, ServerClient

__all__ = ["Reply", "Server", "Servers", "guesses_between", "read_reply"]


@dataclass(frozen=True, slots=True)
class Server:
    """Where to send a request: a client, the model id it answers to, how many requests it holds at once, and what
    it serves by where that is known."""

    client: ServerClient
    model: str
    max_requests: int
    recipe: Recipe | None = None


class Servers(Protocol):
    """The workers as conversations and batches need them, by worker id."""

    def connect(self, worker_id: str) -> Server:
        """The worker's server. Raises WorkerDied or Busy when it cannot be asked now."""

    def max_context(self, worker_id: str) -> int | None:
        """Prompt and reply tokens that fit, None when not known."""

    async def cause_of_death(self, worker_id: str) -> Failure | None:
        """Why the worker has ended, after a moment in which that may become known; None when it has not."""


@dataclass(slots=True)
class Reply:
    """What has come so far. ``sent_s`` and chunk times are of time.perf_counter()."""

    sent_s: float = field(default_factory=time.perf_counter)
    usage: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    failure: Failure | None = None
    trace_ms: list[float] = field(default_factory=list)
    guesses: tuple[int, int] | None = None  # drafted, accepted
    _parts: list[str] = field(default_factory=list)
    _tokens: int = 0

    def add(self, chunk: Chunk) -> None:
        """Take one chunk."""
        if chunk.has_token:
            self.trace_ms.append((chunk.received_s - self.sent_s) * 1e3)
            self._parts.append(chunk.text)
            self._tokens += len(chunk.token_ids) or 1
        self.usage = chunk.usage or self.usage
        self.finish_reason = chunk.finish_reason or self.finish_reason
        if chunk.error is not None:
            self.fail(chunk.error)

    def fail(self, failure: Failure) -> None:
        """It broke off; the text so far stays."""
        self.failure, self.finish_reason = failure, "error"

    @property
    def text(self) -> str:
        """The text so far."""
        if len(self._parts) > 1:
            self._parts[:] = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    @property
    def context_tokens(self) -> int | None:
        """Tokens of prompt and reply, once the server has counted them."""
        prompt = self.usage.get("prompt_tokens")
        return None if prompt is None else int(prompt) + self._output_tokens()

    def stats(self) -> ReplyStats | None:
        """Its speed so far; None before the first token."""
        if not self.trace_ms:
            return None
        ttft_ms, e2e_ms, tokens = self.trace_ms[0], self.trace_ms[-1], self._output_tokens()
        timing, details = self.usage.get("timing") or {}, self.usage.get("prompt_tokens_details") or {}
        drafted, accepted = self.guesses or (None, None)
        return ReplyStats(
            ttft_ms=ttft_ms,
            tpot_ms=(e2e_ms - ttft_ms) / (tokens - 1) if tokens > 1 else None,
            e2e_ms=e2e_ms,
            prompt_tokens=self.usage.get("prompt_tokens"),
            output_tokens=tokens,
            output_tok_s=tokens / e2e_ms * 1e3 if e2e_ms > 0 else None,
            cached_tokens=details.get("cached_tokens"),
            queue_ms=timing.get("queue_ms"),
            prefill_ms=timing.get("prefill_ms"),
            decode_ms=timing.get("decode_ms"),
            drafted_tokens=drafted,
            accepted_tokens=accepted,
        )

    def _output_tokens(self) -> int:
        return int(self.usage.get("completion_tokens") or self._tokens)


async def read_reply(
    reply: Reply, server: Server, messages: Sequence[dict[str, str]], sampling: Sampling, max_tokens: int
) -> None:
    """Ask for one chat completion and fill ``reply`` until it ends. Raises as ``ServerClient.stream`` does."""
    body = {"model": server.model, "messages": list(messages), "max_tokens": max_tokens}
    async for chunk in server.client.stream("/v1/chat/completions", body | _sampling_fields(sampling)):
        reply.add(chunk)


def guesses_between(before: EngineStats, after: EngineStats) -> tuple[int, int] | None:
    """(drafted, accepted) tokens of the one reply that ended between two looks; None where others were at work."""
    ended = [each.finished_total + each.cancelled_total + each.failed_total for each in (before, after)]
    at_work = sum(each.running + each.queued for each in (before, after))
    if at_work or ended[1] - ended[0] != 1:
        return None
    return (
        after.drafted_tokens_total - before.drafted_tokens_total,
        after.accepted_tokens_total - before.accepted_tokens_total,
    )


def _sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """The request's fields; what is at its default is left to the server's, which is the same."""
    plain = asdict(Sampling())
    changed = {name: value for name, value in asdict(sampling).items() if value != plain[name]}
    return changed | {"temperature": sampling.temperature}
