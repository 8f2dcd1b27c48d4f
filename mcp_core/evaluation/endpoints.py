"""Endpoints under judgement: a worker of ours started for a Recipe, or a server that someone else runs at a URL.

Workers are started one at a time and ended before the next, so that two models never need memory together. This
file does not know what is asked of an endpoint.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil

from mcp_core import devices
from mcp_core.errors import McpError
from mcp_core.recipe import Recipe
from mcp_core.serving.client import ServerClient
from mcp_core.serving.supervisor import Supervisor
from mcp_core.views import Progress

__all__ = ["Endpoint", "OnProgress", "Side", "serve"]

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that are compared: the server at ``url``, or without one a worker for ``recipe``."""

    name: str
    recipe: Recipe
    url: str | None = None

    @property
    def engine(self) -> str:
        """What runs it, as far as it is known."""
        return self.recipe.engine

    @property
    def title(self) -> str:
        """In words: "bf16, none on transformers", or the URL. llama.cpp has no dtype beside the file's own."""
        recipe = self.recipe
        dtype = "" if recipe.engine == "llama.cpp" else f"{recipe.dtype}, "
        return self.url or f"{dtype}{recipe.quantization.scheme} on {recipe.engine}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that answers now. ``model`` is the id to ask for; ``max_context`` is known of ours only, tokens."""

    client: ServerClient
    model: str
    max_context: int | None = None


@asynccontextmanager
async def serve(
    side: Side, *, hub_token: str | None = None, on_progress: OnProgress | None = None
) -> AsyncIterator[Endpoint]:
    """The side's server, for as long as the block lasts. Raises what starting a worker raises, and McpError for a
    URL where no model answers."""
    if side.url is not None:
        async with ServerClient(side.url) as client:
            yield await _look(client)
        return
    supervisor = Supervisor(within=_leases_above())
    try:
        worker = await supervisor.start(side.recipe, hub_token=hub_token, on_progress=on_progress)
        assert worker.client is not None
        yield Endpoint(worker.client, (await worker.client.models())[0], worker.state.get("max_context"))
    finally:
        await supervisor.close()


def _leases_above() -> tuple[str, ...]:
    """By which those who started this process measure: a job's parent, or that of the sweep whose job it is."""
    return tuple(lease for each in psutil.Process().parents() for lease in devices.leases_of(each.pid))


async def _look(client: ServerClient) -> Endpoint:
    models = await client.models()
    if not models:
        raise McpError(f"{client.url} serves no model.", "Load one, or check the URL.")
    return Endpoint(client, models[0])
