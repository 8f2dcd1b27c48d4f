"""What the Workbench shows of what it holds: frozen snapshots that a page can draw without asking further.

This file does not know how any of it is obtained, or how it is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from mcp_core.recipe import Recipe
from mcp_core.results import Effective, Failure, Memory, Prediction, Run
from mcp_core.workload import Workload

__all__ = [
    "BatchItemView",
    "ConversationView",
    "JobView",
    "Message",
    "Progress",
    "ReplyStats",
    "WorkerView",
]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far something is. ``fraction`` is 0..1, None when unknown; seconds."""

    stage: str
    fraction: float | None
    message: str
    elapsed_s: float
    remaining_s: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker. ``state`` ready means that it answers requests; ``predicted`` is from before it was loaded."""

    id: str
    recipe: Recipe
    title: str
    state: Literal["starting", "ready", "failed", "died", "stopped"]
    url: str | None
    pid: int | None
    device: str
    progress: Progress | None = None
    failure: Failure | None = None
    effective: Effective | None = None
    memory: Memory | None = None
    predicted: Prediction | None = None
    load_s: float | None = None
    max_context: int | None = None
    random_weights: bool = False
    users: int = 0
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    ``recipe`` is what a reply was served by, ``replaced`` the replies to the same question that were regenerated,
    oldest first.
    """

    role: Literal["system", "user", "assistant"]
    content: str
    stats: ReplyStats | None = None
    finish_reason: str | None = None
    failure: Failure | None = None
    recipe: Recipe | None = None
    replaced: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplyStats:
    """Speed of one reply as its client saw it; ms, tokens.

    ``queue_ms``, ``prefill_ms`` and ``decode_ms`` are the worker's own account. ``cached_tokens`` of the prompt
    were known. ``drafted_tokens`` were guessed and ``accepted_tokens`` of them kept, None where that is not known
    of this reply alone.
    """

    ttft_ms: float | None
    tpot_ms: float | None
    e2e_ms: float | None
    prompt_tokens: int | None
    output_tokens: int | None
    output_tok_s: float | None
    cached_tokens: int | None = None
    queue_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ConversationView:
    """One conversation. While ``streaming``, the last message grows. ``dropped`` messages no longer fit.

    ``trace`` holds ms after sending of each chunk of the last reply, for a picture of its pace.
    """

    id: str
    worker_id: str
    messages: tuple[Message, ...]
    streaming: bool
    dropped: int = 0
    context_tokens: int | None = None
    max_context: int | None = None
    trace: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchItemView:
    """One prompt of the batch box."""

    index: int
    prompt: str
    state: Literal["waiting", "running", "ok", "failed", "cancelled"]
    text: str = ""
    stats: ReplyStats | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class JobView:
    """One piece of long work in a child process. ``run`` is the Run that a bench wrote, ``result`` what any other
    job answered, as JSON."""

    id: str
    verb: str
    title: str
    state: Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
    created: datetime
    progress: Progress | None = None
    failure: Failure | None = None
    run: Run | None = None
    result: dict[str, Any] | None = None
    worker_id: str | None = None
    workload: Workload | None = None
    folder: Path | None = None
    detail: dict[str, Any] = field(default_factory=dict)
