"""A worker process's two ends of its protocol: the order on stdin, JSON lines on stdout.

This file does not know what the process does between them.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mcp_core.errors import InputError, McpError
from mcp_core.recipe import validation_message

__all__ = ["Channel", "Order", "die_first", "end_with_stdin"]


class Order(BaseModel):
    """The line on stdin. ``force`` was for the checks before the start; a worker loads what it is told to."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    recipe: dict[str, Any]
    token: str = Field(min_length=16, repr=False)
    port: int = 0
    hub_token: str | None = Field(default=None, repr=False)
    force: bool = False

    @classmethod
    def read(cls, line: str) -> Order:
        """Raises InputError."""
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            raise InputError(f"The worker's order is not valid: {validation_message(error)}.") from error


class Channel:
    """The protocol's end of stdout."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    @classmethod
    def take_stdout(cls) -> Channel:
        """Keep stdout for the protocol; whatever else is printed goes to stderr from now on."""
        channel = cls(os.dup(1))
        os.dup2(2, 1)
        return channel

    def progress(self, stage: str, fraction: float | None, message: str) -> None:
        """How far loading is. From any thread."""
        self._say({"event": "progress", "stage": stage, "fraction": fraction, "message": message})

    def ready(self, port: int, control_port: int | None = None) -> None:
        """It answers requests; its control routes too, or on a port of their own."""
        self._say({"event": "ready", "port": port, "control_port": control_port or port, "pid": os.getpid()})

    def failed(self, error: McpError) -> None:
        """It never will."""
        self._say({"event": "failed", "failure": error.as_dict()})

    def _say(self, document: dict[str, Any]) -> None:
        with self._lock:
            os.write(self._descriptor, json.dumps(document).encode() + b"\n")


def die_first() -> None:
    """When memory runs out, the kernel is to end a worker rather than the app or another's process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def end_with_stdin() -> None:
    """End this process at stdin's end: the other end closes when its process ends, however it ends."""
    while os.read(0, 65_536):
        pass
    os._exit(0)
