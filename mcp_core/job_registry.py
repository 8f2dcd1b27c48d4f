"""JobRegistry: long work as child processes: queued, started, followed, cancelled, found again after a restart.

One measuring job per device at a time. This file does not know what a job computes (``jobs.py``). Everything
here runs on one asyncio loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from mcp_core import devices, paths
from mcp_core.child_process import ChildProcess, signal_name
from mcp_core.errors import Busy, Cancelled, McpError
from mcp_core.jobs import EVENTS, REQUEST, RESULT, write_json
from mcp_core.progress import ProgressTracker
from mcp_core.results import Failure, Run, new_run_id, now
from mcp_core.views import JobView
from mcp_core.workload import Workload

__all__ = ["JOB_COMMAND", "JobRegistry"]

JOB_COMMAND = (sys.executable, "-m", "mcp_core.jobs")
CANCEL_GRACE_S = 5.0
JOBS_LISTED = 200
_ABOUT = "job.json"
_ENDED = ("done", "failed", "cancelled", "interrupted")

State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a job ended; ``result`` is any answer that is not a Run."""

    state: State
    failure: Failure | None = None
    run: Run | None = None
    result: dict[str, Any] | None = None


@dataclass(eq=False)
class _Job:
    id: str
    verb: str
    title: str
    created: datetime
    folder: Path
    worker_id: str | None = None
    workload: Workload | None = None
    device: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    state: State = "queued"
    failure: Failure | None = None
    run: Run | None = None
    result: dict[str, Any] | None = None
    secrets: dict[str, Any] = field(default_factory=dict, repr=False)
    tracker: ProgressTracker = field(default_factory=lambda: ProgressTracker(time.time(), "queued"))
    events_read: int = 0
    process: ChildProcess | None = None
    life: asyncio.Task[None] | None = None
    place: devices.Lease | None = None  # in the device's line while queued, then the device itself

    def view(self) -> JobView:
        self._read_events()
        return JobView(
            id=self.id,
            verb=self.verb,
            title=self.title,
            state=self.state,
            created=self.created,
            progress=None if self.state in _ENDED else self.tracker.view(time.time()),
            failure=self.failure,
            run=self.run,
            result=self.result,
            worker_id=self.worker_id,
            workload=self.workload,
            folder=self.folder,
            detail=self.detail,
        )

    def _read_events(self) -> None:
        """Take in the whole lines that were added to events.jsonl since the last look."""
        path = self.folder / EVENTS
        if self.state != "running" or not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self.events_read)
            lines, end, _ = file.read().rpartition(b"\n")
        self.events_read += len(lines) + len(end)
        for line in lines.splitlines():
            event = json.loads(line)
            self.tracker.update(event["stage"], event["fraction"], event["message"], event["at_s"])

    def end(self, ended: _Ended) -> None:
        self.state, self.failure, self.run, self.result = ended.state, ended.failure, ended.run, ended.result
        self.secrets = {}
        self.leave()

    def leave(self) -> None:
        """Give back the place in the line, or the device."""
        if self.place is not None:
            self.place.release()
            self.place = None


class JobRegistry:
    """All jobs of this app, and those of earlier ones from disk.

    ``own_leases`` names the app's idle workers, beside which it measures; ``command`` starts a job child;
    ``on_end`` is told of every job that ran, once it has ended.
    """

    def __init__(
        self,
        own_leases: Callable[[], Collection[str]] = tuple,
        command: Sequence[str] = JOB_COMMAND,
        on_end: Callable[[JobView], None] = lambda _: None,
    ) -> None:
        self._own_leases = own_leases
        self._on_end = on_end
        self._command = tuple(command)
        self._closing = False
        self._jobs: dict[str, _Job] = {job.id: job for job in _jobs_on_disk()}

    def submit(
        self,
        verb: str,
        title: str,
        request: dict[str, Any],
        secrets: dict[str, Any],
        *,
        device: str | None = None,
        worker_id: str | None = None,
        workload: Workload | None = None,
        detail: dict[str, Any] | None = None,
    ) -> str:
        """Queue a job and start it as soon as its device is free. ``secrets`` reach it by a pipe, no disk;
        ``detail`` is kept with it for whoever lists jobs.

        Raises Busy when another app uses the device, naming it.
        """
        job_id = new_run_id()
        folder = paths.home("jobs", job_id)
        job = _Job(job_id, verb, title, now(), folder, worker_id, workload, device, detail or {}, secrets=secrets)
        if device is not None:
            self._require_no_other_app(device)
            job.place = devices.wait_in_line(device, title)
        write_json(folder / REQUEST, request)
        write_json(folder / _ABOUT, _about(job))
        self._jobs[job.id] = job
        self.start_queued()
        return job.id

    def start_queued(self) -> None:
        """Start every queued job whose device is free now; called from time to time, in vain after ``close``."""
        if self._closing:
            return
        for job in self._jobs.values():
            if job.state == "queued" and self._takes_device(job):
                job.state = "running"
                job.tracker = ProgressTracker(time.time(), message="Starting the job's process.")
                job.life = asyncio.create_task(self._live(job))

    def views(self) -> tuple[JobView, ...]:
        """Every job, newest first."""
        newest_first = sorted(self._jobs.values(), key=lambda job: job.created, reverse=True)
        return tuple(job.view() for job in newest_first)

    def view(self, job_id: str) -> JobView | None:
        """One job."""
        return self._jobs[job_id].view() if job_id in self._jobs else None

    def active_on(self, worker_id: str) -> bool:
        """Whether a job on that worker is queued or runs."""
        return any(job.worker_id == worker_id and job.state not in _ENDED for job in self._jobs.values())

    def processes(self) -> tuple[tuple[int, str], ...]:
        """Process id and title of every job that runs."""
        running = (job for job in self._jobs.values() if job.state == "running" and job.process is not None)
        return tuple((job.process.pid, job.title) for job in running if job.process is not None)

    def measuring(self, device: str) -> str | None:
        """Title of the job that measures on that device now."""
        running = (job for job in self._jobs.values() if job.state == "running" and job.device == device)
        return next((job.title for job in running), None)

    async def cancel(self, job_id: str) -> None:
        """Take it out of the queue; a running one gets SIGTERM, and SIGKILL to its group after 5 s."""
        job = self._jobs.get(job_id)
        if job is None or job.state in _ENDED:
            return
        if job.state == "queued":
            job.end(_Ended("cancelled", _cancelled()))
            write_json(job.folder / RESULT, {"state": "cancelled", "failure": _cancelled().model_dump()})
            return
        job.failure = _cancelled()  # what it will be if the child leaves no result
        if job.process is not None:
            await job.process.terminate(CANCEL_GRACE_S)
        if job.life is not None:
            await asyncio.shield(job.life)

    async def close(self) -> None:
        """Cancel what runs; what is queued never starts, and will be listed as interrupted."""
        self._closing = True
        await asyncio.gather(*(self.cancel(job.id) for job in self._jobs.values() if job.state == "running"))
        for job in self._jobs.values():
            job.leave()

    def _takes_device(self, job: _Job) -> bool:
        if job.device is None:
            return True
        if self.measuring(job.device):
            job.tracker.message = f"waiting: {self.measuring(job.device)} runs on {job.device}"
            return False
        try:
            lease = devices.acquire(job.device, "measure", job.title, besides=self._own_leases())
        except Busy as error:
            job.tracker.message = f"waiting: {error.message}"
            return False
        job.leave()
        job.place = lease
        return True

    def _require_no_other_app(self, device: str) -> None:
        others = [each for each in devices.holders(device) if each.pid != os.getpid()]
        if others:
            raise Busy(
                f"{device} is in use by {', '.join(map(str, others))}.", "Unload it there, or wait until it ends."
            )

    async def _live(self, job: _Job) -> None:
        """The whole life of one child, from spawn to result."""
        try:
            with (job.folder / "log.txt").open("wb") as log:
                command = (*self._command, job.verb, str(job.folder))
                job.process = await ChildProcess.spawn(command, json.dumps(job.secrets), output=log)
            if job.failure is not None:  # cancelled while it was being spawned
                await job.process.terminate(CANCEL_GRACE_S)
            code = await job.process.wait()
            await job.process.close()
            job.view()  # the last events
            job.end(_result_of(job, code))
        except OSError as error:
            job.end(_Ended("failed", Failure(kind="error", message=f"The job could not be started: {error}.")))
        self._on_end(job.view())
        self.start_queued()


def _result_of(job: _Job, code: int) -> _Ended:
    """What the child left; when it left nothing, why."""
    try:
        return _read_result(job.folder)
    except (OSError, ValueError, KeyError, TypeError):
        if job.failure is not None:
            return _Ended("cancelled", job.failure)
    error = McpError(
        f"The job's process ended without a result ({signal_name(code)}).", f"Its log: {job.folder / 'log.txt'}"
    )
    return _Ended("failed", Failure.of(error))


def _read_result(folder: Path) -> _Ended:
    document = json.loads((folder / RESULT).read_text())
    if document["state"] not in _ENDED:
        raise ValueError(f"no such state: {document['state']}")
    failure = Failure.model_validate(document["failure"]) if document["failure"] else None
    result = document.get("result")
    if isinstance(result, dict) and "workload" in result and "recipe" in result:
        return _Ended(document["state"], failure, run=Run.model_validate(result))
    return _Ended(document["state"], failure, result=result if isinstance(result, dict) else None)


def _about(job: _Job) -> dict[str, Any]:
    """What is needed to list the job after a restart, and to tell whether its app still runs."""
    return {
        "id": job.id,
        "verb": job.verb,
        "title": job.title,
        "created": job.created.isoformat(),
        "worker_id": job.worker_id,
        "device": job.device,
        "workload": job.workload.model_dump(mode="json") if job.workload else None,
        "detail": job.detail,
        "app_pid": os.getpid(),
        "app_started_s": devices.process_started_s(os.getpid()),
    }


def _jobs_on_disk() -> Iterator[_Job]:
    """The newest jobs of earlier apps; those of one that still runs are its own, and wrecks are passed over."""
    for folder in sorted(paths.home("jobs").iterdir(), reverse=True)[:JOBS_LISTED]:
        try:
            about = json.loads((folder / _ABOUT).read_text())
            finished = (folder / RESULT).exists()
            if finished or not devices.is_alive(about["app_pid"], about["app_started_s"]):
                yield _job_from(folder, about)
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _job_from(folder: Path, about: dict[str, Any]) -> _Job:
    job = _Job(
        id=folder.name,
        verb=about["verb"],
        title=about["title"],
        created=datetime.fromisoformat(about["created"]),
        folder=folder,
        worker_id=about["worker_id"],
        workload=Workload.from_dict(about["workload"]) if about["workload"] else None,
        device=about["device"],
        detail=about.get("detail", {}),
    )
    if (folder / RESULT).exists():
        job.end(_read_result(folder))
    else:
        hint = "Start it again; what it had stored until then is in Runs."
        job.end(_Ended("interrupted", Failure(kind="error", message="The app ended while this ran.", hint=hint)))
    return job


def _cancelled() -> Failure:
    return Failure.of(Cancelled("The job was cancelled."))
