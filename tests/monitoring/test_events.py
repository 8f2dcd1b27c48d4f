"""events: a worker's life and a job's, told once each, with what changed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from mcp_core.monitoring.events import KEEP_S, EventLog
from mcp_core.presets import bundled
from mcp_core.results import Failure
from mcp_core.views import JobView, WorkerView

STARTING = WorkerView("w1", bundled(), "Tiny", "starting", None, None, "cpu")
READY = replace(STARTING, state="ready", load_s=12.3)
JOB = JobView("j1", "bench", "short-chat on Tiny", "queued", datetime.now(UTC), worker_id="w1")


def told(log: EventLog) -> list[tuple[str, str]]:
    return [(event.kind, event.text) for event in log.since(0)]


def test_a_workers_life():
    log = EventLog()
    changed = replace(READY, recipe=READY.recipe.replace({"batching.mode": "continuous"}))
    cached = replace(changed, recipe=changed.recipe.replace({"prefix_cache": not changed.recipe.prefix_cache}))
    for view in (STARTING, STARTING, READY, READY, changed, changed, cached):
        log.look([view], [])
    log.look([], [])
    assert told(log) == [
        ("load", "Loading Tiny"),
        ("ready", "Tiny is ready after 12 s"),
        ("change", "Tiny: batching.mode off → continuous"),
        ("change", "Tiny: prefix_cache off → on"),
        ("unload", "Tiny was unloaded"),
    ]
    assert {event.worker_id for event in log.since(0)} == {"w1"}


def test_a_kill_for_memory_a_death_and_a_load_that_fails_are_told_apart():
    oom = Failure(kind="oom", message="Memory ran out.")
    died = Failure(kind="worker", message="It was killed by signal 9.")
    for state, failure, kind in (("died", oom, "oom"), ("died", died, "died"), ("failed", died, "failed")):
        log = EventLog()
        log.look([READY], [])
        log.look([replace(READY, state=state, failure=failure)], [])
        log.look([], [])  # dismissed: it was not running any more
        assert told(log)[2:] == [(kind, f"Tiny: {failure.message}")]


def test_a_job_begins_and_ends_and_those_of_before_are_not_told():
    old = replace(JOB, id="j0", state="done")
    log = EventLog()
    log.look([], [old])
    for state in ("queued", "running", "running", "failed"):
        log.look([], [old, replace(JOB, state=state)])
    assert told(log) == [("job start", "Began: short-chat on Tiny"), ("job end", "Failed: short-chat on Tiny")]


def test_a_job_that_was_over_within_a_second_is_told_whole_and_one_cancelled_in_the_queue_never_began():
    log = EventLog()
    log.look([], [])
    log.look([], [replace(JOB, state="done")])
    assert [kind for kind, _ in told(log)] == ["job start", "job end"]
    log.look([], [replace(JOB, state="done"), replace(JOB, id="j2", state="cancelled")])
    assert told(log)[2:] == [("job end", "Cancelled: short-chat on Tiny")]


def test_a_day_old_event_is_forgotten():
    now = [1000.0]
    log = EventLog(clock=lambda: now[0])
    log.look([STARTING], [])
    now[0] += KEEP_S + 1
    log.look([READY], [])
    assert [kind for kind, _ in told(log)] == ["ready"]
    assert log.since(now[0] + 1) == ()
