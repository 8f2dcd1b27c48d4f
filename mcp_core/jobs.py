"""One job in a process of its own: ``python -m mcp_core.jobs VERB DIR``.

Reads DIR/request.json and one line of secrets from stdin; writes DIR/events.jsonl as it goes and
DIR/result.json at the end. It ends when its stdin does. This file does not know who started it, or when
another job may run (``job_registry.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from mcp_core.errors import Cancelled, InputError, McpError
from mcp_core.views import Progress

__all__ = ["EVENTS", "REQUEST", "RESULT", "VERBS", "Job", "Outcome", "Verb", "main", "write_json"]

log = logging.getLogger(__name__)

REQUEST, EVENTS, RESULT = "request.json", "events.jsonl", "result.json"
# From the end of stdin to the end of this process, at most; s.
ABANDONED_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended. ``result`` is any JSON value, a bench's Run for one."""

    state: Literal["done", "failed", "cancelled"]
    failure: dict[str, str] | None = None
    result: Any = None


@dataclass(frozen=True, slots=True)
class Job:
    """What a verb is given: the request, secrets that are on no disk, and where progress goes."""

    folder: Path
    request: dict[str, Any]
    secrets: dict[str, Any]

    def report(self, progress: Progress) -> None:
        """As ``tell``: whoever reads the events counts elapsed and remaining time anew."""
        self.tell(progress.stage, progress.fraction, progress.message)

    def tell(self, stage: str, fraction: float | None, message: str) -> None:
        """Add one line to events.jsonl; ``fraction`` is 0..1 of the stage, None when unknown."""
        event = {"at_s": time.time(), "stage": stage, "fraction": fraction, "message": message}
        with (self.folder / EVENTS).open("a") as file:
            file.write(json.dumps(event) + "\n")


Verb = Callable[[Job], Awaitable[Outcome]]

# verb -> "module:function"; only the asked one is imported, in the job's own process, so it may be heavy.
VERBS: dict[str, str] = {
    "bench": "mcp_core.evaluation.bench_job:run",
    "capacity": "mcp_core.evaluation.capacity_job:run",
    "fidelity": "mcp_core.evaluation.fidelity_job:run",
    "endpoint-fidelity": "mcp_core.evaluation.endpoint_job:run",
    "length-drift": "mcp_core.evaluation.quality_jobs:drift",
    "task-check": "mcp_core.evaluation.quality_jobs:tasks",
    "calibrate": "mcp_core.memory.calibrate_job:run",
    "quantize": "mcp_core.memory.quantization.checkpoint_job:run",
    "sensitivity": "mcp_core.evaluation.sensitivity:run",
    "experiment": "mcp_core.evaluation.experiment_job:run",
    "crowd": "mcp_core.evaluation.crowd_job:run",
    "profile": "mcp_core.evaluation.profile_job:run",
    "ceilings": "mcp_core.evaluation.ceilings_job:run",
    "sweep": "mcp_core.evaluation.sweep_job:run",
    "confirm": "mcp_core.evaluation.confirm_job:run",
}


def main(arguments: Sequence[str]) -> int:
    """Run one job; 0 when it is done, 1 when it failed or was cancelled."""
    verb, folder = arguments[0], Path(arguments[1])
    secrets = json.loads(_first_line_of_stdin())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    outcome = asyncio.run(_run(verb, folder, secrets))
    write_json(folder / RESULT, {"state": outcome.state, "failure": outcome.failure, "result": outcome.result})
    return 0 if outcome.state == "done" else 1


async def _run(verb: str, folder: Path, secrets: dict[str, Any]) -> Outcome:
    job = Job(folder, json.loads((folder / REQUEST).read_text()), secrets)
    task = asyncio.ensure_future(_attempt(verb, job))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        return await task
    return Outcome("cancelled", Cancelled("The job was cancelled.").as_dict())


async def _attempt(verb: str, job: Job) -> Outcome:
    try:
        return await _function_of(verb)(job)
    except McpError as error:
        return Outcome("failed", error.as_dict())
    except Exception as error:  # a process's border: the app must be told, whatever it was
        log.exception("the job failed")
        hint = f"This is a defect of MCP; the job's log has the details: {job.folder}"
        return Outcome("failed", McpError(f"{type(error).__name__}: {error}", hint).as_dict())


def _function_of(verb: str) -> Verb:
    if verb not in VERBS:
        raise InputError(f'There is no job "{verb}".', f"There are: {', '.join(VERBS)}.")
    module, _, name = VERBS[verb].partition(":")
    function: Verb = getattr(import_module(module), name)
    return function


def write_json(path: Path, document: Any) -> None:
    """Write it so that a reader finds either the old file or the whole new one."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(document, indent=2) + "\n")
    fresh.replace(path)


def _first_line_of_stdin() -> bytes:
    # Unbuffered: a daemon thread that sits in a buffered read crashes the interpreter as it shuts down.
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line or b"{}"


def _end_with_stdin() -> None:
    """The app holds the other end: when it is gone, by whatever way, so is this job."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ABANDONED_GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
