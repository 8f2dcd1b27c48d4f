"""Errors in OpenAI's JSON form, ``{"error": {"message", "type", "param", "code"}}``, and our kind and hint.

This file does not know what raises them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mcp_core.errors import (
    Busy,
    Cancelled,
    ContextTooLong,
    InputError,
    McpError,
    ModelNotFound,
    OutOfMemory,
    QueueFull,
    RequestRejected,
)

__all__ = ["error_document", "error_response", "install_error_handlers", "refusal"]

# The first class that fits decides.
_STATUS: tuple[tuple[type[McpError], int, str | None], ...] = (
    (ContextTooLong, 400, "context_length_exceeded"),
    (ModelNotFound, 404, "model_not_found"),
    (InputError, 400, None),
    (QueueFull, 503, "queue_full"),
    (Cancelled, 503, "cancelled"),
    (Busy, 409, "busy"),
    (McpError, 500, None),
)
RETRY_AFTER_S = 1
# What Python says when there is no memory for a thread's stack.
_NO_THREAD = "can't start new thread"


def error_document(error: McpError) -> dict[str, Any]:
    """The body of the answer, or of an event in a stream, that this error is."""
    status, code = _status_of(error)
    return {
        "error": {
            "message": error.message,
            "type": _type_of(status),
            "param": "model" if isinstance(error, ModelNotFound) else getattr(error, "param", None),
            "code": code,
            "kind": error.kind,
            "hint": error.hint,
        }
    }


def error_response(error: McpError) -> JSONResponse:
    """The answer that this error is."""
    status, _ = _status_of(error)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
    return _JSON(error_document(error), status, headers)


def refusal(
    status: int, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An answer for what has no McpError: routes, methods, headers, bodies."""
    error = {"message": message, "type": _type_of(status), "param": param, "code": None}
    return _JSON({"error": error}, status, headers)


def install_error_handlers(app: FastAPI) -> None:
    """Every error of this application in the one form."""
    app.add_exception_handler(McpError, _on_mcp_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_body)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_surprise)


class _JSON(JSONResponse):
    """ASCII only: a message may quote half of a surrogate pair, which has no UTF-8."""

    def render(self, content: Any) -> bytes:
        """As bytes."""
        return json.dumps(content, separators=(",", ":")).encode()


def _status_of(error: McpError) -> tuple[int, str | None]:
    return next((status, code) for cls, status, code in _STATUS if isinstance(error, cls))


def _type_of(status: int) -> str:
    if status in (401, 403):
        return "authentication_error"
    if status == 503:
        return "overloaded_error"
    return "invalid_request_error" if status < 500 else "server_error"


async def _on_mcp_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, McpError)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, str(error.detail), headers=error.headers)


async def _on_invalid_body(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    param = _place(problem)
    return error_response(RequestRejected(_words(problem, param), param=param))


async def _on_surprise(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, MemoryError) or str(error) == _NO_THREAD:
        cause = "Memory ran out while the request was prepared."
        return error_response(OutOfMemory(cause, "Send less at once, or unload other models."))
    # The traceback goes to the log by uvicorn; a client gets no insides.
    return refusal(500, "The server met an error that it did not expect; its log says more.")


def _place(problem: Mapping[str, Any]) -> str | None:
    """``messages[0].content`` from ("body", "messages", 0, "content")."""
    if problem.get("ctx", {}).get("param"):
        return str(problem["ctx"]["param"])
    path = ""
    for part in problem["loc"][1:]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".") or None


def _words(problem: Mapping[str, Any], param: str | None) -> str:
    if problem["type"] == "json_invalid":
        return f"The body is not valid JSON: {problem['ctx']['error']}."
    if problem["type"] == "extra_forbidden":
        return f"Unknown field: {param}."
    if problem["type"] == "missing" and param is None:
        return "The body is missing; send a JSON object."
    message = str(problem["msg"])
    if problem.get("ctx", {}).get("param"):
        return message
    return f"{param}: {message}" if param else message
