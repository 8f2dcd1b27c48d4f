"""HttpServer: uvicorn in a loop that is not its own, which says when it answers and leaves signals alone.

This file does not know the application.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

__all__ = ["HttpServer", "http_config"]


class HttpServer(uvicorn.Server):
    """Without signal handlers: its process has a way of its own to end."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, then tell."""
        await super().startup(sockets)
        self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def http_config(app: Any) -> uvicorn.Config:
    """How a worker's application is served."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        # Longer than a client keeps an idle connection, so that none is closed under a request.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )
