"""The control routes that record a profile: started, and stopped before its end.

This file does not know how steps are recorded (``inference/profiling.py``) or read (``evaluation/``).
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from mcp_core import paths
from mcp_core.profile_plan import ProfilePlan
from mcp_core.serving.served_model import ServingEngine

__all__ = ["profile_routes"]


class _Profile(ProfilePlan):
    """A plan, and how long it may take."""

    timeout_s: float = Field(default=300.0, gt=0, le=3600)


def profile_routes(engine: ServingEngine) -> APIRouter:
    """``/profile`` and ``/stop-profile``."""
    router = APIRouter()

    @router.post("/profile")
    async def profile(body: _Profile) -> dict[str, Any]:
        traces = await asyncio.to_thread(engine.profile, body, paths.home("profiles"), body.timeout_s)
        return {"trace": traces[0].path, "traces": [each.model_dump(mode="json") for each in traces]}

    @router.post("/stop-profile")
    async def stop_profile() -> dict[str, Any]:
        engine.stop_profile()
        return {"state": "stopping"}

    return router
