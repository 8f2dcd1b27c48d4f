"""A raw trace as torch wrote it → the trace that is kept: steps named by their phase, waits added, size capped.

Its ``mcp`` entry says what was recorded. This file does not know how traces are read (``trace_reading.py``) or kept
(``trace_store.py``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from mcp_core.errors import InputError
from mcp_core.evaluation.chrome_trace import Event
from mcp_core.trace_summary import RecordedStep

__all__ = ["MOST_EVENTS", "QUEUED", "RAW_STEP", "finished"]

RAW_STEP = "engine step"
# Category of the events that say how long a request waited.
QUEUED = "queued"
# About 60 MB of JSON, 4 MB compressed: what Perfetto opens in seconds.
MOST_EVENTS = 250_000

# Numbers that lead nowhere outside of torch.
_NOISE = ("External id", "Record function id", "Ev Idx", "Input Strides", "Sequence number", "Fwd thread id")
_HOST_WORK = frozenset({"cpu_op", "user_annotation"})
_DRIVER_CALLS = frozenset({"cuda_runtime", "cuda_driver"})
_WAITING_ROWS = 64
_FIRST_WAITING_ROW = 900_000


def finished(raw: dict[str, Any], steps: Sequence[RecordedStep], about: dict[str, Any]) -> dict[str, Any]:
    """The document to keep. ``about`` becomes its ``mcp`` entry, with ``truncated`` in it.

    Raises InputError when the trace does not hold these steps.
    """
    events = [_plain(event) for event in raw["traceEvents"] if event.get("cat") != "Trace"]
    found = sorted(filter(_is_step, events), key=lambda event: event["ts"])
    if not steps or steps[-1].index >= len(found):
        raise InputError("The trace does not hold the steps that were recorded.", "Record it again.")
    named = [found[step.index] for step in steps]
    _give_calls_to(found[0]["tid"], events)
    waits: list[Event] = []
    for number, (event, step) in enumerate(zip(named, steps, strict=True)):
        _name(event, step, number)
        waits += _waits(event, step, len(waits))
    kept, truncated = _capped(events, named)
    rest = {key: value for key, value in raw.items() if key not in ("traceEvents", "traceName")}
    return rest | {"mcp": about | {"truncated": truncated}, "traceEvents": kept + waits}


def _is_step(event: Event) -> bool:
    """Of a GPU torch writes every section twice: as the host called it, and from its first kernel to its last."""
    return bool(event.get("name") == RAW_STEP and event.get("cat") == "user_annotation")


def _give_calls_to(engine: object, events: Sequence[Event]) -> None:
    """Driver calls of a thread that did nothing else are the engine's.

    Kineto knows their thread by pthread's number, which the engine's may have from a thread that has ended: they
    are written as that one's, and nothing says which step they are in.
    """
    at_work = {event["tid"] for event in events if event.get("cat") in _HOST_WORK}
    for event in events:
        if event.get("cat") in _DRIVER_CALLS and event["tid"] not in at_work:
            event["tid"] = engine


def _plain(event: Event) -> Event:
    args = event.get("args")
    if isinstance(args, dict):
        event["args"] = {key: value for key, value in args.items() if key not in _NOISE}
    return event


def _name(event: Event, step: RecordedStep, number: int) -> None:
    event["name"] = "prefill" if step.prefill_tokens else "decode"
    event["args"] = {
        "step": number,
        "sequences": step.batch,
        "prompt tokens": step.prefill_tokens,
        "new tokens": step.new_tokens,
    }


def _waits(event: Event, step: RecordedStep, before: int) -> list[Event]:
    """A request waits from its arrival to the step that it is first worked on in."""
    return [
        {
            "ph": "X",
            "cat": QUEUED,
            "name": "queued",
            "pid": event["pid"],
            "tid": _FIRST_WAITING_ROW + (before + row) % _WAITING_ROWS,
            "ts": event["ts"] - wait_ms * 1e3,
            "dur": wait_ms * 1e3,
        }
        for row, wait_ms in enumerate(step.queued_ms)
    ]


def _capped(events: list[Event], steps: list[Event]) -> tuple[list[Event], str]:
    """Whole steps from the first one on, as many as fit; and what was cut, in words."""
    if len(events) <= MOST_EVENTS:
        return events, ""
    times = sorted(event["ts"] for event in events if "ts" in event)
    whole = [step for step in steps if bisect_right(times, step["ts"] + step["dur"]) <= MOST_EVENTS] or steps[:1]
    end_us = whole[-1]["ts"] + whole[-1]["dur"]
    kept = [event for event in events if event.get("ts", 0.0) <= end_us or event.get("ph") == "M"]
    return kept, f"It holds the first {len(whole)} of {len(steps)} steps: {MOST_EVENTS:,} events at most."
