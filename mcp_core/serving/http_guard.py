"""HttpGuard: what is refused before any route sees it. Pure ASGI, so streams pass untouched.

A browser page of another site must not reach a worker on loopback: the Host header must name this server (a
rebound DNS name does not), bodies must be JSON (a form cannot send that without asking first), and no answer
carries a CORS permission. This file does not know the routes.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_core.serving.http_errors import refusal

__all__ = ["MAX_BODY_BYTES", "HttpGuard"]

MAX_BODY_BYTES = 8 * 1024**2
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})


class HttpGuard:
    """Wraps an application. ``hosts`` are names allowed beside the loopback ones."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._hosts = _LOOPBACK | {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refuse(headers)
        if refused is None:
            await self._app(scope, _limited(receive), send)
            return
        status, message = refused
        await refusal(status, message)(scope, receive, send)

    def _refuse(self, headers: Headers) -> tuple[int, str] | None:
        if _host_name(headers.get("host", "")) not in self._hosts:
            return 403, "The Host header does not name this server."
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            return 413, f"The body is larger than {MAX_BODY_BYTES} bytes."
        has_body = length != "0" or "transfer-encoding" in headers
        if has_body and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return 415, "The body must be JSON: Content-Type: application/json."
        return None


def _host_name(host: str) -> str:
    """Without its port: ``[::1]:8000`` is ``[::1]``."""
    name, colon, port = host.strip().lower().rpartition(":")
    return name if colon and port.isdigit() and not host.endswith("]") else host.strip().lower()


def _limited(receive: Receive) -> Receive:
    """A body sent in chunks says its size only at its end."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
        return message

    return limited
