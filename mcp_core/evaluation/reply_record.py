"""One request: the body that is sent, and what is noted of its reply while it arrives.

This file does not know when a request is sent, or what becomes of its record.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from mcp_core.documents import Message
from mcp_core.errors import McpError
from mcp_core.evaluation.prompts import Prompt
from mcp_core.results import Failure, RequestRecord
from mcp_core.serving.client import Chunk

__all__ = ["ReplyRecord", "request_body", "route_of", "too_slow"]


def route_of(prompt: Prompt) -> str:
    """Messages go through the model's chat template, everything else to completions."""
    return "/v1/chat/completions" if _messages(prompt) else "/v1/completions"


def request_body(prompt: Prompt, model: str, *, exact: bool = False) -> dict[str, Any]:
    """What is posted to ``route_of``. Token ids, and text where ``exact``, ask for an exact reply length, which our
    worker, vLLM and SGLang understand; else standard fields, and the length that the server chose is recorded."""
    body: dict[str, Any] = {"model": model, "max_tokens": prompt.output_tokens, "temperature": 0.0}
    if exact or not (isinstance(prompt.content, str) or _messages(prompt)):
        body |= {"min_tokens": prompt.output_tokens, "ignore_eos": True}
    if isinstance(prompt.content, str):
        return body | {"prompt": prompt.content}
    if messages := _messages(prompt):
        return body | {"messages": messages}
    return body | {"prompt": list(prompt.content)}


def too_slow(timeout_s: float) -> Failure:
    """The failure of a reply that was not complete in time."""
    return Failure.of(
        McpError(f"The reply was not complete after {timeout_s:g} s.", "Raise timeout_s in the Workload.")
    )


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    if isinstance(prompt.content, str):
        return []
    said = [each for each in prompt.content[:1] if isinstance(each, Message)] and prompt.content
    return [{"role": each.role, "content": each.content} for each in said if isinstance(each, Message)]


class ReplyRecord:
    """One reply while it arrives; its clock starts when this is made.

    ``due_s`` is when it should have been sent, on the clock of ``begun_s``; None where nothing was due.
    """

    def __init__(self, prompt: Prompt, begun_s: float, due_s: float | None = None) -> None:
        self._prompt = prompt
        self._sha256 = prompt.sha256
        self._chunk_ms: list[float] = []
        self._chunk_tokens: list[int] = []
        self._answer_ms: float | None = None
        self._reasoned = False
        self._ids: list[int] = []
        self._said: list[str] = []
        self._usage: dict[str, Any] = {}
        self._failure: Failure | None = None
        self._sent_s = time.perf_counter()
        self._sent_ms = (self._sent_s - begun_s) * 1e3
        self._late_ms = None if due_s is None else max(0.0, self._sent_ms - due_s * 1e3)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the reply so far; empty where the server does not tell them."""
        return tuple(self._ids)

    @property
    def text(self) -> str:
        """The reply so far, without its reasoning."""
        return "".join(self._said)

    def take(self, chunk: Chunk) -> None:
        """Note one chunk."""
        if chunk.has_token:
            at_ms = (chunk.received_s - self._sent_s) * 1e3
            self._chunk_ms.append(at_ms)
            self._chunk_tokens.append(len(chunk.token_ids) or 1)
            self._reasoned = self._reasoned or bool(chunk.reasoning)
            if chunk.text and self._answer_ms is None:
                self._answer_ms = at_ms
            self._ids += chunk.token_ids
            self._said.append(chunk.text)
        self._usage = chunk.usage or self._usage
        self._failure = chunk.error or self._failure

    def ended(self) -> RequestRecord:
        """The record of a stream that has ended."""
        if self._failure is not None:
            return self.failed(self._failure)
        if not self._chunk_ms:
            return self.failed(Failure(kind="error", message="The reply carried no token."))
        return self.record("ok")

    def failed(self, failure: Failure) -> RequestRecord:
        """The record of a request that failed, with what came until then."""
        return self.record("failed", failure)

    def record(self, status: Literal["ok", "failed", "cancelled"], failure: Failure | None = None) -> RequestRecord:
        """The record as of now."""
        details = self._usage.get("prompt_tokens_details") or {}
        return RequestRecord(
            index=self._prompt.index,
            status=status,
            sent_ms=self._sent_ms,
            late_ms=self._late_ms,
            ttft_ms=self._chunk_ms[0] if self._chunk_ms else None,
            first_answer_ms=self._answer_ms if self._reasoned else None,
            e2e_ms=self._chunk_ms[-1] if status == "ok" else None,
            chunk_ms=tuple(self._chunk_ms),
            chunk_tokens=tuple(self._chunk_tokens),
            prompt_tokens=self._usage.get("prompt_tokens"),
            output_tokens=self._usage.get("completion_tokens"),
            cached_tokens=details.get("cached_tokens"),
            shared_tokens=self._prompt.shared_tokens,
            prompt_sha256=self._sha256,
            server_timing=self._usage.get("timing"),
            failure=failure,
        )
