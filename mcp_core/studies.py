"""Studies: what is found out about a Recipe beside serving it, each a job in a process of its own.

Pages reach it as ``workbench.studies``. This file does not know how a study is done (the job's module in
``jobs.VERBS`` does) or when it may run (``job_registry.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from mcp_core.recipe import Recipe
from mcp_core.views import JobView

__all__ = ["Studies", "Submit"]


class Submit(Protocol):
    """Queues a job that measures on the Recipe's device; ``workbench.Workbench`` gives one."""

    def __call__(
        self, verb: str, title: str, request: dict[str, Any], recipe: Recipe, hub_token: str | None = None, /
    ) -> str:
        """The job's id. Raises RecipeError for what cannot run here, and Busy."""


class Studies:
    """Starts studies and finds what they answered. Every method may be called from any thread."""

    def __init__(self, submit: Submit, jobs: Callable[[], tuple[JobView, ...]]) -> None:
        self._submit = submit
        self._jobs = jobs

    def latest(self, verb: str, recipe: Recipe | None = None) -> JobView | None:
        """The newest job of that verb, of that Recipe where one is given; None when there is none."""
        return next((job for job in self.all(verb) if recipe is None or _of(job) == recipe.fingerprint), None)

    def all(self, verb: str) -> tuple[JobView, ...]:
        """Every job of that verb, newest first."""
        return tuple(job for job in self._jobs() if job.verb == verb)


def _of(job: JobView) -> str | None:
    """Fingerprint of the Recipe that the job was asked about."""
    fingerprint = job.detail.get("recipe_fingerprint")
    return str(fingerprint) if fingerprint else None
