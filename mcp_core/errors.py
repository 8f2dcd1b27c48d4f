"""The error tree: what a user did or met, in one line, and what to do about it.

Foreign errors (CUDA out of memory, a missing Hub file, a corrupt header) are mapped to these once, at the
border where they occur. An ``assert`` states an invariant of ours; a user's mistake is never an assert.

    McpError                     kind        message + hint; every one below is one
    ├── InputError               (ValueError; the command line exits 2)
    │   ├── RecipeError          recipe      a Recipe that is malformed or that this machine cannot run
    │   ├── WorkloadError        workload    a Workload that is malformed
    │   ├── GoalError            goal        a Goal that is malformed or contradicts itself
    │   ├── ModelNotFound        not_found   no such file, folder, Hub id or preset
    │   ├── InvalidModel         invalid     no weights in it, truncated, not a causal language model
    │   ├── UnsafeModel          unsafe      pickle weights, remote code, a path outside the allowed roots
    │   └── RequestRejected      request     a chat or completion request that cannot be served (HTTP 400)
    │       └── ContextTooLong   context     prompt and reply together do not fit the context (HTTP 400)
    ├── HubError                 hub         no network, gated model, wrong token
    ├── DoesNotFit               memory      refused before loading: needs more memory than is free
    ├── DiskFull                 disk        not enough disk for a download or a prepared model
    ├── PortInUse                port        the asked port is taken
    ├── OutOfMemory              oom         memory ran out while loading or serving
    ├── WorkerDied               worker      the worker process ended without being asked to
    ├── LoadFailed               load        the worker could not load the model, for a reason it named
    ├── Cancelled                cancelled   the user asked to stop
    ├── QueueFull                queue       the worker's queue is full (HTTP 503)
    ├── Busy                     busy        the device or worker is held by someone else (HTTP 409)
    ├── FidelityLost         fidelity    predictions are further from the reference than a Goal allows
    ├── Unscorable               unscorable  a server gives no log-probabilities of a prompt
    └── StoreError               store       the results store cannot be read or written

This file does not know what raises these.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "Busy",
    "Cancelled",
    "ContextTooLong",
    "DiskFull",
    "DoesNotFit",
    "FidelityLost",
    "GoalError",
    "HubError",
    "InputError",
    "InvalidModel",
    "LoadFailed",
    "McpError",
    "ModelNotFound",
    "OutOfMemory",
    "PortInUse",
    "QueueFull",
    "RecipeError",
    "RequestRejected",
    "StoreError",
    "UnsafeModel",
    "Unscorable",
    "WorkerDied",
    "WorkloadError",
    "error_from",
]


class McpError(Exception):
    """An error with a one-line cause (``message``) and what to do next (``hint``)."""

    kind: ClassVar[str] = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def as_dict(self) -> dict[str, str]:
        """``{kind, message, hint}``, the wire form that ``error_from`` reads back."""
        return {"kind": self.kind, "message": self.message, "hint": self.hint}


class InputError(McpError, ValueError):
    """What the user gave is wrong; nothing was started."""

    kind = "input"


class RecipeError(InputError):
    """A Recipe is malformed, or asks for what this machine cannot do."""

    kind = "recipe"


class WorkloadError(InputError):
    """A Workload is malformed."""

    kind = "workload"


class GoalError(InputError):
    """A Goal is malformed, or contradicts itself."""

    kind = "goal"


class ModelNotFound(InputError):
    """No such file, folder, Hub id, prepared model or preset."""

    kind = "not_found"


class InvalidModel(InputError):
    """The model's files are truncated, hold no weights, or are not a causal language model."""

    kind = "invalid"


class UnsafeModel(InputError):
    """Loading would run code from the model or read outside the allowed folders."""

    kind = "unsafe"


class RequestRejected(InputError):
    """A chat or completion request that cannot be served; becomes an OpenAI-style HTTP 400."""

    kind = "request"

    def __init__(self, message: str, hint: str = "", *, param: str | None = None) -> None:
        super().__init__(message, hint)
        self.param = param


class ContextTooLong(RequestRejected):
    """Prompt and reply together do not fit the model's context (OpenAI's code context_length_exceeded)."""

    kind = "context"


class HubError(McpError):
    """The Hugging Face Hub could not be reached or refused access."""

    kind = "hub"


class DoesNotFit(McpError):
    """The footprint is larger than the memory that is free now."""

    kind = "memory"


class DiskFull(McpError):
    """A download or a prepared model needs more disk than is free."""

    kind = "disk"


class PortInUse(McpError):
    """The port that was asked for is taken."""

    kind = "port"


class OutOfMemory(McpError):
    """Memory ran out while loading or serving."""

    kind = "oom"


class WorkerDied(McpError):
    """A worker process ended without being asked to."""

    kind = "worker"


class LoadFailed(McpError):
    """A worker could not load its model and said why."""

    kind = "load"


class Cancelled(McpError):
    """The user asked to stop."""

    kind = "cancelled"


class QueueFull(McpError):
    """The worker's request queue is full; try again later (HTTP 503)."""

    kind = "queue"


class Busy(McpError):
    """The device or the worker is held by another user or measurement (HTTP 409)."""

    kind = "busy"


class FidelityLost(McpError):
    """The predictions are further from the reference's than a Goal allows, or it is not known how far."""

    kind = "fidelity"


class Unscorable(McpError):
    """The server gives no log-probabilities of a prompt."""

    kind = "unscorable"


class StoreError(McpError):
    """The results store cannot be read or written."""

    kind = "store"


def _kinds(cls: type[McpError] = McpError) -> dict[str, type[McpError]]:
    table = {cls.kind: cls}
    for child in cls.__subclasses__():
        table |= _kinds(child)
    return table


def error_from(document: dict[str, Any]) -> McpError:
    """Rebuild the error that another process sent as ``as_dict()``; an unknown kind is a plain McpError."""
    cls = _kinds().get(str(document.get("kind")), McpError)
    return cls(str(document.get("message", "unknown error")), str(document.get("hint", "")))
