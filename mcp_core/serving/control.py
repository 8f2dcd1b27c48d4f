"""The worker's control routes, for the app that started it: bearer token, JSON, never from a browser.

This file does not know how a worker is started or ended (``worker.py``).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from os import getpid
from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from mcp_core import conflicts, devices, hardware
from mcp_core.errors import Busy, RequestRejected
from mcp_core.recipe import Recipe
from mcp_core.results import Memory
from mcp_core.serving.memory_routes import MemoryAnswers, memory_routes
from mcp_core.serving.profile_routes import profile_routes
from mcp_core.serving.service import Service

__all__ = ["Hold", "Holding", "WorkerControl", "bearer", "control_routes"]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Hold(_Body):
    """A measurement holds the worker: what for, and which process measures."""

    purpose: str = Field(min_length=1, max_length=200)
    pid: int = Field(ge=1)


@dataclass(eq=False, slots=True)
class Holding:
    """Who holds a worker while it is measured. ``started_s`` tells that process from a later one of the same id."""

    holder: Hold | None = None
    started_s: float | None = None

    def take(self, hold: Hold) -> None:
        """Refuse live changes until released, or until the holding process is gone. Raises Busy."""
        self.require_free()
        self.holder, self.started_s = hold, devices.process_started_s(hold.pid)

    def require_free(self) -> None:
        """Raise Busy while somebody holds it."""
        if self.holder is None or self.started_s is None:
            return
        if devices.is_alive(self.holder.pid, self.started_s):
            raise Busy(f"The worker is held: {self.holder.purpose}.", "Wait until it ends, or cancel it.")

    def release(self) -> None:
        """End the hold."""
        self.holder = None


@dataclass(eq=False)
class WorkerControl:
    """What the control routes act on; live changes replace ``recipe``."""

    service: Service
    recipe: Recipe
    token: str = field(repr=False)
    load_s: float
    memory: Callable[[], Memory]
    reset_peaks: Callable[[], None]
    shut_down: Callable[[], None]
    answers: MemoryAnswers | None = None
    holding: Holding = field(default_factory=Holding)

    def state(self) -> dict[str, Any]:
        """What this worker is."""
        model = self.service.model
        return {
            "state": "ready" if self.service.ready else "draining",
            "title": model.title,
            "model": self.service.model_id,
            "recipe": self.recipe.model_dump(mode="json"),
            "effective": model.effective.model_dump(mode="json") | self._now(),
            "memory": self.memory().model_dump(mode="json"),
            "vocab_size": model.vocab_size,
            "special_ids": sorted(model.special_ids),
            "eos_ids": sorted(model.eos_ids),
            "max_context": model.max_context,
            "load_s": self.load_s,
            "random_weights": model.random_weights,
            "pid": getpid(),
            "numerics_key": self.recipe.numerics_key,
        }

    def _now(self) -> dict[str, Any]:
        """What a live change of the batching mode changed."""
        engine = self.service.engine
        kernel = {"attention_backend": engine.kernel_name} if engine.kernel_name else {}
        made = engine.preparation
        compiled = {"compile_s": made.seconds, "compile_kept": made.kept} if made else {}
        limit = engine.stats().kv_host_limit_bytes
        return {"batching_mode": engine.mode_name, "kv_host_limit_bytes": limit or None} | kernel | compiled

    def apply(self, asked: Recipe) -> None:
        """Change the live fields to those of ``asked``.

        Raises RequestRejected naming another field, RecipeError for what does not go together.
        """
        asked = _as_running(asked, self.recipe)
        for name in _differences(self.recipe.model_dump(), asked.model_dump()):
            if name not in _LIVE_FIELDS:
                raise RequestRejected(f"{name} cannot change in a running worker.", "Load it anew.", param=name)
        conflicts.require_runnable(asked, hardware.detect())
        self.service.engine.apply_live(asked)
        self.recipe = asked

    async def drain(self, timeout_s: float) -> bool:
        """Accept nothing more and wait for what runs; whether all of it ended in time."""
        self.service.ready = False
        return await asyncio.to_thread(self.service.engine.drain, timeout_s)


_LIVE_FIELDS = frozenset({"batching.mode", "batching.max_requests", "batching.max_wait_ms", "prefix_cache"})


class _Drain(_Body):
    timeout_s: float = Field(default=30.0, ge=0, le=3600)


def control_routes(control: WorkerControl) -> APIRouter:
    """``/control/...``."""
    router = APIRouter(prefix="/control", dependencies=[Depends(bearer(control.token))])
    router.include_router(memory_routes(control.answers, lambda: control.recipe))
    router.include_router(profile_routes(control.service.engine))

    @router.get("/state")
    async def state() -> dict[str, Any]:
        return control.state()

    @router.get("/stats")
    async def stats() -> dict[str, Any]:
        return asdict(control.service.engine.stats()) | {
            "memory": control.memory().model_dump(mode="json"),
            "latency": asdict(control.service.metrics.latency()),
        }

    @router.post("/recipe")
    async def recipe(request: Request) -> dict[str, Any]:
        asked = Recipe.from_json(await request.body())
        control.holding.take(Hold(purpose="changing how it serves", pid=getpid()))
        try:
            await asyncio.to_thread(control.apply, asked)  # another batching mode waits for what runs
        finally:
            control.holding.release()
        return control.state()

    @router.post("/hold")
    async def hold(body: Hold) -> dict[str, Any]:
        control.holding.take(body)
        return {"held_for": body.purpose}

    @router.post("/release")
    async def release() -> dict[str, Any]:
        control.holding.release()
        return {"held_for": None}

    @router.post("/drain")
    async def drain(body: _Drain) -> dict[str, Any]:
        return {"drained": await control.drain(body.timeout_s)}

    @router.post("/reset-peaks")
    async def reset_peaks() -> dict[str, Any]:
        control.reset_peaks()
        return control.memory().model_dump(mode="json")

    @router.post("/shutdown")
    async def shutdown() -> dict[str, Any]:
        control.shut_down()
        return {"state": "ending"}

    return router


def bearer(token: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency that lets nobody through but who has the token."""
    expected = f"Bearer {token}".encode()

    # async: a plain function would be called in a thread of its own, which a process short of memory cannot start.
    async def check(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, expected):
            raise HTTPException(401, "This route needs the worker's token.", {"WWW-Authenticate": "Bearer"})

    return check


def _as_running(asked: Recipe, running: Recipe) -> Recipe:
    """What ``asked`` leaves to the machine (device auto, threads null, no hash) is what runs."""
    changes: dict[str, Any] = {}
    if asked.device == "auto":
        changes["device"] = running.device
    if asked.threads is None:
        changes["threads"] = running.threads
    if asked.model.sha256 is None:
        changes["model"] = asked.model.model_copy(update={"sha256": running.model.sha256})
    return asked.model_copy(update=changes)


def _differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields that differ."""
    names: list[str] = []
    for key, value in before.items():
        if isinstance(value, dict) and isinstance(after[key], dict):
            names += _differences(value, after[key], f"{prefix}{key}.")
        elif value != after[key]:
            names.append(f"{prefix}{key}")
    return names
