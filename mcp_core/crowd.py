"""Crowd: many chats at once against one worker, in one batching mode after the other; what came of each request.

A demonstration: it writes no Run. This file does not know how requests are sent (``evaluation/crowd_job.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from mcp_core.errors import InputError
from mcp_core.hardware import Hardware
from mcp_core.recipe import BatchingMode, Recipe
from mcp_core.results import Failure
from mcp_core.views import JobView

__all__ = [
    "LIVE",
    "MODES",
    "Crowd",
    "CrowdPlan",
    "CrowdRequest",
    "CrowdRun",
    "crowd_of",
    "recipe_in",
    "refused_modes",
    "require_possible",
]

# In the job's folder: the Crowd as it is now.
LIVE = "live.json"
MODES: tuple[BatchingMode, ...] = get_args(BatchingMode)


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CrowdPlan(_Value):
    """How many users ask at once, how much, and in which modes, in that order."""

    users: Annotated[int, Field(ge=2, le=64)]
    prompt_tokens: Annotated[int, Field(ge=1, le=100_000)]
    output_tokens: Annotated[int, Field(ge=2, le=100_000)]
    modes: tuple[BatchingMode, ...] = Field(min_length=1)


class CrowdRequest(_Value):
    """One user's request. Times are ms after the crowd began, by the sender's clock.

    ``queue_ms`` and ``prefill_ms`` divide the wait by the worker's own account, known once the reply has ended.
    """

    index: int
    state: Literal["waiting", "decoding", "ok", "failed", "cancelled"]
    sent_ms: float
    first_ms: float | None = None
    last_ms: float | None = None
    tokens: int = 0
    queue_ms: float | None = None
    prefill_ms: float | None = None


class CrowdRun(_Value):
    """One mode: its requests, and figures once all have ended (definitions: evaluation/metrics.py)."""

    mode: BatchingMode
    elapsed_ms: float
    ended: bool = False
    requests: tuple[CrowdRequest, ...] = ()
    output_tok_s: float | None = None
    ttft_p50_ms: float | None = None
    ttft_p90_ms: float | None = None
    completed: int = 0
    failure: Failure | None = Field(default=None, description="The first request's that failed.")


class Crowd(_Value):
    """The plan, and every mode so far."""

    plan: CrowdPlan
    runs: tuple[CrowdRun, ...] = ()

    def of(self, mode: str) -> CrowdRun | None:
        """That mode's, None before its turn."""
        return next((run for run in self.runs if run.mode == mode), None)


def crowd_of(job: JobView) -> Crowd | None:
    """What a crowd job answered, or has got so far; None before that."""
    if job.result is not None:
        return Crowd.model_validate(job.result)
    try:
        return Crowd.model_validate_json((job.folder / LIVE).read_bytes()) if job.folder else None
    except FileNotFoundError:
        return None


def recipe_in(recipe: Recipe, mode: BatchingMode) -> Recipe:
    """The Recipe in that mode. Without the prefix cache: every prompt is new, and not every mode can have one."""
    return recipe.replace({"batching.mode": mode, "prefix_cache": False})


def refused_modes(recipe: Recipe, hardware: Hardware, modes: Sequence[BatchingMode] = MODES) -> dict[str, str]:
    """Modes that a worker of this Recipe cannot change to, each with the reason."""
    conflicts = {mode: recipe_in(recipe, mode).conflicts(hardware) for mode in modes}
    return {mode: f"{found[0].reason} {found[0].fix}" for mode, found in conflicts.items() if found}


def require_possible(plan: CrowdPlan, recipe: Recipe, hardware: Hardware, max_context: int | None) -> None:
    """Raise InputError for what this worker cannot hold, or a mode that it cannot be in."""
    longest = plan.prompt_tokens + plan.output_tokens
    if max_context is not None and longest > max_context:
        raise InputError(
            f"A prompt and its reply take {longest:,} tokens; the context holds {max_context:,}.",
            "Shorten one of them.",
        )
    most = recipe.batching.max_requests
    if plan.users > most:
        raise InputError(
            f"This worker holds {most} requests at once; {plan.users} users send one each.",
            "Choose fewer users, or raise Max requests on the Recipe page.",
        )
    for mode, reason in refused_modes(recipe, hardware, plan.modes).items():
        raise InputError(f"Batching {mode}: {reason}", "Leave this mode out.")
