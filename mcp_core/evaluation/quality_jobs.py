"""The jobs ``length-drift`` and ``task-check``: a reference and a candidate asked the same, one after the other.

This file does not know how replies are compared (``length_drift.py``) or answers found (``task_check.py``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from mcp_core import texts
from mcp_core.documents import Document
from mcp_core.errors import InputError
from mcp_core.evaluation import length_drift, task_check
from mcp_core.evaluation.endpoints import Endpoint, serve
from mcp_core.evaluation.sides import SideReport, served, sides_of
from mcp_core.jobs import Job, Outcome

__all__ = ["drift", "tasks"]

T = TypeVar("T")


async def drift(job: Job) -> Outcome:
    """Request: recipe, url, reference_url, text_sha256 (null: the built-in prompts), max_tokens.

    The answer is a LengthDrift.
    """
    chats, limit = _chats(job.request.get("text_sha256")), int(job.request["max_tokens"])

    async def ask(endpoint: Endpoint, report: SideReport) -> tuple[length_drift.Reply, ...]:
        return await length_drift.replies(endpoint, chats, limit, report.done)

    reference, candidate = await _both(job, len(chats), "replies", ask)
    return Outcome("done", result=length_drift.compare(chats, reference, candidate, limit).model_dump(mode="json"))


async def tasks(job: Job) -> Outcome:
    """Request: recipe, url, reference_url, name, items (null: the built-in ones). The answer is a TaskCheck."""
    given = job.request.get("items")
    own = (task_check.TaskItem.model_validate(each) for each in given or ())
    items = task_check.builtin_items() if given is None else tuple(own)
    name = str(job.request.get("name") or task_check.BUILTIN)

    async def ask(endpoint: Endpoint, report: SideReport) -> tuple[int, ...]:
        return await task_check.answers(endpoint, items, report.done)

    reference, candidate = await _both(job, len(items), "items", ask)
    return Outcome("done", result=task_check.compare(name, items, reference, candidate).model_dump(mode="json"))


async def _both(
    job: Job, total: int, noun: str, ask: Callable[[Endpoint, SideReport], Awaitable[T]]
) -> tuple[tuple[str, T], tuple[str, T]]:
    """What each side answered, with its title; the reference is gone before the candidate is started."""
    sides = await sides_of(job)
    for side in (sides.reference, sides.candidate):
        if side.url is not None:  # a server that is not there is known before minutes are spent on the other side
            async with serve(side):
                pass
    answered = []
    for side in (sides.reference, sides.candidate):
        async with served(job, side, total, noun) as (endpoint, report):
            answered.append((side.title, await ask(endpoint, report)))
    return answered[0], answered[1]


def _chats(text_sha256: str | None) -> tuple[list[dict[str, str]], ...]:
    """The built-in prompts, or every prompt of one of the user's texts. Raises InputError when that has none."""
    chosen = length_drift.builtin_prompts() if text_sha256 is None else texts.get(text_sha256).documents
    chats = [_turns(document) for document in chosen if document.messages]
    asked = tuple(chat for chat in chats if chat[-1]["role"] == "user")
    if not asked:
        raise InputError(
            "This text has no prompts, only passages.", 'Give a .jsonl file with a "prompt" or "messages" a row.'
        )
    return asked


def _turns(document: Document) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in document.messages]
