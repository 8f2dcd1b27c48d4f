"""The worker's routes about memory: where it goes, what was predicted for a workload, the allocator's snapshot.

This file does not know how any of it is found out; ``control.py`` guards the routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from mcp_core.errors import RequestRejected
from mcp_core.memory_readings import MemoryAnalysis
from mcp_core.recipe import Recipe
from mcp_core.results import Prediction
from mcp_core.workload import Workload

__all__ = ["MemoryAnswers", "memory_routes"]


@dataclass(frozen=True, slots=True)
class MemoryAnswers:
    """How the questions are answered.

    ``analysis`` takes the most points of loading and of serving; ``snapshot`` the seconds to record and returns the
    file. It is None where ``no_snapshot`` says why.
    """

    analysis: Callable[[int | None], MemoryAnalysis]
    predict: Callable[[Workload, Recipe], Prediction]
    snapshot: Callable[[float], Path] | None = None
    no_snapshot: str = ""


class _Snapshot(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    seconds: float = Field(default=5.0, ge=0, le=60)


def memory_routes(answers: MemoryAnswers | None, running: Callable[[], Recipe]) -> APIRouter:
    """``memory``, ``prediction`` and ``snapshot``, to be put under ``/control``; none where nothing answers.

    ``running`` is the Recipe as it runs now, live changes included.
    """
    router = APIRouter()
    if answers is None:
        return router

    @router.get("/memory")
    async def memory(most: int | None = None) -> dict[str, Any]:
        return (await asyncio.to_thread(answers.analysis, most)).model_dump(mode="json")

    @router.post("/prediction")
    async def prediction(request: Request) -> dict[str, Any]:
        workload = Workload.from_json(await request.body())
        return (await asyncio.to_thread(answers.predict, workload, running())).model_dump(mode="json")

    @router.post("/snapshot")
    async def snapshot(body: _Snapshot) -> dict[str, Any]:
        if answers.snapshot is None:
            raise RequestRejected(answers.no_snapshot, "The timeline and the modules are there on every device.")
        path = await asyncio.to_thread(answers.snapshot, body.seconds)
        return {"snapshot": str(path), "bytes": path.stat().st_size}

    return router
