from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mcp_core import devices, paths
from mcp_core.errors import Busy
from mcp_core.job_registry import JobRegistry
from mcp_core.results import now
from mcp_core.views import JobView
from mcp_core.workload import short_chat

# Adds verbs that do known things to the table, then is the real job child.
CHILD = """
import asyncio, json, os, signal, sys
from mcp_core import jobs
from mcp_core.errors import McpError, OutOfMemory
from mcp_core.jobs import Outcome
from mcp_core.views import Progress

async def add(job):
    for step in (1, 2):
        job.report(Progress("adding", step / 2, f"step {step}", 0.0))
    return Outcome("done", None, sum(job.request["numbers"]))

async def wait(job):
    job.report(Progress("waiting", None, job.secrets["token"][:3], 0.0))
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        asyncio.current_task().uncancel()
        return Outcome("cancelled", McpError("stopped midway").as_dict(), "half")

async def sleep(job):
    await asyncio.sleep(60)

async def refuse(job):
    raise OutOfMemory("too big", "smaller")

async def crash(job):
    raise ZeroDivisionError("by zero")

async def die(job):
    os.kill(os.getpid(), signal.SIGKILL)

async def deaf(job):
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    job.report(Progress("deaf", None, "", 0.0))
    await asyncio.sleep(60)

jobs.ABANDONED_GRACE_S = 0.3
for verb in (add, wait, sleep, refuse, crash, die, deaf):
    jobs.VERBS[verb.__name__] = f"__main__:{verb.__name__}"
sys.exit(jobs.main(sys.argv[1:]))
"""
COMMAND = (sys.executable, "-c", CHILD)


def in_registry(use: Callable[[JobRegistry], Awaitable[None]]) -> None:
    async def run() -> None:
        registry = JobRegistry(command=COMMAND)
        try:
            await use(registry)
        finally:
            await registry.close()

    asyncio.run(run())


def view_of(registry: JobRegistry, job_id: str) -> JobView:
    found = registry.view(job_id)
    assert found is not None
    return found


async def reaches(registry: JobRegistry, job_id: str, *states: str, seconds: float = 20.0) -> JobView:
    end = time.monotonic() + seconds
    while view_of(registry, job_id).state not in states:
        assert time.monotonic() < end, view_of(registry, job_id)
        await asyncio.sleep(0.02)
    return view_of(registry, job_id)


async def stage(registry: JobRegistry, job_id: str, name: str) -> JobView:
    """The job's view once its child has reported that stage."""
    for _ in range(1000):
        view = view_of(registry, job_id)
        if view.progress is not None and view.progress.stage == name:
            return view
        await asyncio.sleep(0.02)
    raise AssertionError(view)


def result_file(view: JobView) -> Any:
    assert view.folder is not None
    return json.loads((view.folder / "result.json").read_text())


def test_a_job_runs_reports_and_leaves_its_result() -> None:
    async def use(registry: JobRegistry) -> None:
        job_id = registry.submit("add", "adding up", {"numbers": [2, 3]}, {}, workload=short_chat())
        view = await reaches(registry, job_id, "done")
        assert (view.verb, view.title, view.workload, view.failure) == ("add", "adding up", short_chat(), None)
        assert result_file(view)["result"] == 5
        assert view.folder is not None
        events = [json.loads(line) for line in (view.folder / "events.jsonl").read_text().splitlines()]
        assert [(event["fraction"], event["message"]) for event in events] == [(0.5, "step 1"), (1.0, "step 2")]

    in_registry(use)


def test_progress_is_seen_secrets_arrive_and_are_on_no_disk_and_cancel_keeps_what_there_is() -> None:
    async def use(registry: JobRegistry) -> None:
        job_id = registry.submit("wait", "waiting", {}, {"token": "secret-token"})
        view = await stage(registry, job_id, "waiting")
        assert view.progress is not None
        assert view.progress.message == "sec"
        assert view.progress.elapsed_s > 0
        assert view.folder is not None
        for file in view.folder.iterdir():
            assert "secret-token" not in file.read_text()
        await registry.cancel(job_id)
        view = view_of(registry, job_id)
        assert (view.state, view.progress) == ("cancelled", None)
        assert view.failure is not None
        assert view.failure.message == "stopped midway"
        assert result_file(view)["result"] == "half"

    in_registry(use)


def test_a_verb_that_does_not_handle_cancellation_is_cancelled_all_the_same() -> None:
    async def use(registry: JobRegistry) -> None:
        job_id = registry.submit("sleep", "sleeping", {}, {})
        await registry.cancel(job_id)
        view = view_of(registry, job_id)
        assert view.state == "cancelled"
        assert view.failure is not None
        assert view.failure.kind == "cancelled"

    in_registry(use)


def test_a_deaf_job_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_core.job_registry.CANCEL_GRACE_S", 0.1)

    async def use(registry: JobRegistry) -> None:
        job_id = registry.submit("deaf", "deaf", {}, {})
        await stage(registry, job_id, "deaf")
        await registry.cancel(job_id)
        assert view_of(registry, job_id).state == "cancelled"

    in_registry(use)


@pytest.mark.parametrize(
    ("verb", "kind", "message"),
    [
        ("refuse", "oom", "too big"),
        ("crash", "error", "ZeroDivisionError: by zero"),
        ("die", "error", "signal SIGKILL"),
        ("nonsense", "input", 'no job "nonsense"'),
    ],
)
def test_a_failed_job_says_why(verb: str, kind: str, message: str) -> None:
    async def use(registry: JobRegistry) -> None:
        view = await reaches(registry, registry.submit(verb, verb, {}, {}), "failed")
        assert view.failure is not None
        assert view.failure.kind == kind
        assert message in view.failure.message
        assert view.failure.hint
        if verb == "crash":
            assert view.folder is not None
            assert "Traceback" in (view.folder / "log.txt").read_text()

    in_registry(use)


def test_one_measurement_per_device_and_the_line_is_seen() -> None:
    async def use(registry: JobRegistry) -> None:
        first = registry.submit("wait", "first", {}, {"token": "abc"}, device="cpu", worker_id="w1")
        second = registry.submit("add", "second", {"numbers": [1]}, {}, device="cpu", worker_id="w2")
        elsewhere = registry.submit("add", "elsewhere", {"numbers": [1]}, {}, device="cuda:0")
        assert view_of(registry, second).state == "queued"
        progress = view_of(registry, second).progress
        assert progress is not None
        assert progress.message == "waiting: first runs on cpu"
        assert registry.measuring("cpu") == "first"
        assert (registry.active_on("w1"), registry.active_on("w2"), registry.active_on("w3")) == (1, 1, 0)
        assert [holder.label for holder in devices.holders("cpu")] == ["first"]
        assert [each.label for each in devices.waiters("cpu")] == ["second"]
        await reaches(registry, elsewhere, "done")
        assert view_of(registry, second).state == "queued"
        await registry.cancel(first)
        await reaches(registry, second, "done")
        assert (devices.holders("cpu"), devices.waiters("cpu")) == ((), ())
        assert [view.title for view in registry.views()][::-1] == ["first", "second", "elsewhere"]

    in_registry(use)


def test_closing_starts_nothing_that_was_queued() -> None:
    async def use() -> None:
        registry = JobRegistry(command=COMMAND)
        first = registry.submit("wait", "first", {}, {"token": "abc"}, device="cpu")
        second = registry.submit("add", "second", {"numbers": [1]}, {}, device="cpu")
        await stage(registry, first, "waiting")
        await registry.close()
        registry.start_queued()  # the Workbench's tick may still come
        assert (view_of(registry, first).state, view_of(registry, second).state) == ("cancelled", "queued")
        assert (devices.holders("cpu"), devices.waiters("cpu")) == ((), ())

    asyncio.run(use())


def test_a_queued_job_is_taken_out_of_the_line() -> None:
    async def use(registry: JobRegistry) -> None:
        with devices.acquire("cpu", "measure", "someone"):
            job_id = registry.submit("add", "mine", {"numbers": []}, {}, device="cpu")
            progress = view_of(registry, job_id).progress
            assert progress is not None
            assert "someone (measuring" in progress.message
            await registry.cancel(job_id)
            assert view_of(registry, job_id).state == "cancelled"
            assert devices.waiters("cpu") == ()

    in_registry(use)


def test_a_measurement_runs_beside_the_apps_own_idle_workers_only() -> None:
    async def use() -> None:
        mine, foreign = devices.acquire("cpu", "chat", "mine"), devices.acquire("cpu", "chat", "foreign")
        registry = JobRegistry(lambda: (mine.holder.id,), COMMAND)
        job_id = registry.submit("add", "bench", {"numbers": [1]}, {}, device="cpu")
        progress = view_of(registry, job_id).progress
        assert progress is not None
        assert "foreign" in progress.message
        assert "mine" not in progress.message
        foreign.release()
        registry.start_queued()
        await reaches(registry, job_id, "done")
        await registry.close()

    asyncio.run(use())


def test_another_app_on_the_device_is_named_at_once() -> None:
    code = (
        "from mcp_core import devices; devices.acquire('cpu', 'chat', 'their model'); print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()

        async def use(registry: JobRegistry) -> None:
            with pytest.raises(Busy, match=rf"their model \(loaded, process {other.pid}\)"):
                registry.submit("add", "mine", {}, {}, device="cpu")
            assert registry.views() == ()

        in_registry(use)
        other.kill()


def on_disk(name: str, result: Any = None, **changes: Any) -> Path:
    """A job's folder as an app that is gone left it."""
    folder = paths.home("jobs", name)
    about = {
        "id": name,
        "verb": "bench",
        "title": name,
        "created": now().isoformat(),
        "worker_id": "w",
        "device": "cpu",
        "workload": short_chat().model_dump(mode="json"),
        "app_pid": 1,
        "app_started_s": 5.0,
    }
    (folder / "job.json").write_text(json.dumps(about | changes))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_after_a_restart_finished_jobs_are_listed_running_ones_interrupted_and_wrecks_passed_over() -> None:
    failure = {"kind": "oom", "message": "too big", "hint": ""}
    on_disk("1-done", {"state": "done", "failure": None, "result": 5})
    on_disk("2-failed", {"state": "failed", "failure": failure, "result": None})
    on_disk("3-running")
    on_disk("4-wreck").joinpath("job.json").write_text("{")
    on_disk("5-wreck", {"state": "no such state", "failure": None})
    on_disk("6-wreck", [1])
    on_disk("7-wreck", workload={"requests": -1})
    paths.home("jobs", "8-wreck")
    (paths.home("jobs") / "9-wreck").write_text("not a folder")
    mine = devices.process_started_s(os.getpid())
    on_disk("a-of-an-app-that-runs", app_pid=os.getpid(), app_started_s=mine)
    views = {view.id: view for view in JobRegistry().views()}
    assert {job_id: view.state for job_id, view in views.items()} == {
        "1-done": "done",
        "2-failed": "failed",
        "3-running": "interrupted",
    }
    assert list(views) == ["3-running", "2-failed", "1-done"]
    assert views["2-failed"].failure is not None
    assert views["2-failed"].failure.message == "too big"
    interrupted = views["3-running"].failure
    assert interrupted is not None
    assert interrupted.hint
    assert views["3-running"].workload == short_chat()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_job_dies_with_the_app_and_is_interrupted_afterwards(number: signal.Signals) -> None:
    parent = f"""
import asyncio, sys
from mcp_core.job_registry import JobRegistry

async def main():
    registry = JobRegistry(command={COMMAND!r})
    job_id = registry.submit("deaf", "long", {{}}, {{}})
    while not (view := registry.view(job_id)).progress or view.progress.stage != "deaf":
        await asyncio.sleep(0.02)
    print(registry._jobs[job_id].process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as app:
        assert app.stdout is not None
        child = int(app.stdout.readline())
        app.send_signal(number)
        app.wait(10)
    end = time.monotonic() + 10
    while devices.process_started_s(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert devices.process_started_s(child) is None
    (view,) = JobRegistry().views()
    assert view.state == "interrupted"
