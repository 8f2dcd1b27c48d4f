"""Chunk: one server-sent event of a stream, and how it is read from what a server wrote.

This file does not know how events arrive, or who reads them.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from mcp_core.results import Failure

__all__ = ["Chunk", "read_chunk"]


class Chunk(NamedTuple):
    """One server-sent event of a stream. ``received_s`` is time.perf_counter() when its bytes arrived.

    ``error`` is set on the last chunk of a stream that did not end well: the server said so, or the
    connection ended without ``[DONE]``. ``reasoning`` is text that the server marks as thought, not answer.
    """

    received_s: float
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: Failure | None = None
    reasoning: str = ""

    @property
    def has_token(self) -> bool:
        """Whether it carries a token; its text may be empty while a stop string is held back."""
        return bool(self.token_ids or self.text or self.reasoning)


def read_chunk(received_s: float, payload: bytes) -> Chunk:
    """The event whose data this is; one that is not understood is a chunk with an error. Raises nothing."""
    try:
        document = json.loads(payload)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        failure = Failure(kind="error", message="The server sent an event that is not a JSON object.")
        return Chunk(received_s, error=failure)
    if document.get("error"):
        return Chunk(received_s, error=_failure(document["error"]))
    try:
        return _event(received_s, document)
    except (AttributeError, IndexError, KeyError, TypeError):
        failure = Failure(kind="error", message="The server sent an event in a form that is not understood.")
        return Chunk(received_s, error=failure)


def _event(received_s: float, document: dict[str, Any]) -> Chunk:
    """Raises what reading another form raises. An answer has thousands of them: what is absent costs nothing."""
    choices = document.get("choices")
    choice = choices[0] if choices else {}
    delta = choice.get("delta") or {}
    text = (choice.get("text") if "text" in choice else delta.get("content")) or ""
    if not isinstance(text, str):
        raise TypeError
    usage = document.get("usage") or None
    if usage is not None:
        _require_counts(usage)
    # vLLM's older name, its newer
    reasoning = (delta.get("reasoning_content") or delta.get("reasoning") or "") if delta else ""
    ids = tuple(choice.get("token_ids") or ())
    return Chunk(received_s, text, ids, choice.get("finish_reason"), usage, None, reasoning)


def _require_counts(usage: Any) -> None:
    """Raises as ``_event`` does."""
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    counts.append((usage.get("prompt_tokens_details") or {}).get("cached_tokens"))
    if not all(count is None or type(count) is int for count in counts):
        raise TypeError


def _failure(error: Any) -> Failure:
    """The failure in a stream's error event: ours has kind and hint, a foreign one a message only."""
    if not isinstance(error, dict):
        return Failure(kind="error", message=str(error))
    return Failure(
        kind=str(error.get("kind") or "error"),
        message=str(error.get("message") or "The server reported an error."),
        hint=str(error.get("hint") or ""),
    )
