"""Control routes for a server that has none: the process beside it answers what is known of it.

The same routes as a worker's own (``control.py``), so that fleet, benchmark and pages need not know the difference.
This file does not know how the server is started or read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from fastapi import APIRouter, Depends, FastAPI

from mcp_core.errors import RequestRejected
from mcp_core.generation import EngineStats
from mcp_core.results import Memory
from mcp_core.serving.control import Hold, Holding, bearer
from mcp_core.serving.http_errors import install_error_handlers
from mcp_core.serving.http_guard import HttpGuard

__all__ = ["ForeignControl", "create_control"]

_UNKNOWN = {
    "GET": ("memory",),
    "POST": ("prediction", "snapshot", "profile", "stop-profile", "recipe", "drain"),
}


@dataclass(eq=False)
class ForeignControl:
    """What the routes ask. ``title`` is the engine's name; ``state`` lacks memory, which is read each time."""

    title: str
    token: str = field(repr=False)
    state: dict[str, Any]
    stats: Callable[[], Awaitable[EngineStats]]
    memory: Callable[[], Memory]
    reset_peaks: Callable[[], None]
    shut_down: Callable[[], None]
    holding: Holding = field(default_factory=Holding)


def create_control(control: ForeignControl) -> FastAPI:
    """``/control/...``, guarded as a worker's."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(_routes(control))
    install_error_handlers(app)
    app.add_middleware(HttpGuard)
    return app


def _routes(control: ForeignControl) -> APIRouter:
    router = APIRouter(prefix="/control", dependencies=[Depends(bearer(control.token))])

    @router.get("/state")
    async def state() -> dict[str, Any]:
        return control.state | {"memory": control.memory().model_dump(mode="json")}

    @router.get("/stats")
    async def stats() -> dict[str, Any]:
        return asdict(await control.stats()) | {"memory": control.memory().model_dump(mode="json")}

    @router.post("/hold")
    async def hold(body: Hold) -> dict[str, Any]:
        control.holding.take(body)
        return {"held_for": body.purpose}

    @router.post("/release")
    async def release() -> dict[str, Any]:
        control.holding.release()
        return {"held_for": None}

    @router.post("/reset-peaks")
    async def reset_peaks() -> dict[str, Any]:
        control.reset_peaks()
        return control.memory().model_dump(mode="json")

    @router.post("/shutdown")
    async def shutdown() -> dict[str, Any]:
        control.shut_down()
        return {"state": "ending"}

    async def unknown() -> NoReturn:
        raise RequestRejected(
            f"{control.title} does not tell or change that while it runs.",
            "Load the Recipe anew to change it, or use engine transformers.",
        )

    for method, names in _UNKNOWN.items():
        for name in names:
            router.add_api_route(f"/{name}", unknown, methods=[method], response_model=None)
    return router
