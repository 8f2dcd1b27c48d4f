"""The longest events of a trace, placed for drawing: rows of a thread by depth, rows of a device by stream.

A browser draws about 4,000 bars; they are chosen when the trace is kept, for the whole of it and for one step of
each phase. Frozen values; this file does not know how they are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mcp_core.evaluation.chrome_trace import Event
from mcp_core.evaluation.trace_finishing import QUEUED
from mcp_core.evaluation.trace_parts import kernel_part, operator_part
from mcp_core.trace_summary import Part

__all__ = ["MOST_BARS", "Bar", "Timeline", "Timelines", "timelines_of"]

MOST_BARS = 2000
_CALLS = frozenset({"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"})
_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_MOST_NAME = 80

Kind = Literal["section", "operator", "call", "kernel", "waiting"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bar(_Value):
    """One event; ``row`` counts within its lane, callers above what they call."""

    name: str
    lane: str = Field(description="engine, other threads, waiting requests, GPU stream N.")
    row: int
    kind: Kind
    part: Part
    begin_ms: float
    length_ms: float


class Timeline(_Value):
    """The longest of so many events, in order of their beginning."""

    bars: tuple[Bar, ...]
    events: int = Field(description="Events there are; more than bars: the shortest are left out.")
    begin_ms: float
    end_ms: float


class Timelines(_Value):
    """Of the whole trace, and of the middle step of each phase; None where there is no such step."""

    whole: Timeline
    prefill: Timeline | None = None
    decode: Timeline | None = None


def timelines_of(document: dict[str, Any]) -> Timelines:
    """``document`` is a finished trace; times count from its first event that is drawn."""
    events = [event for event in document["traceEvents"] if event.get("ph") == "X" and _kind(event) is not None]
    steps = [event for event in events if "sequences" in (event.get("args") or {})]
    zero_us = min((float(step["ts"]) for step in steps), default=0.0)
    placed = _placed(events, steps[0]["tid"] if steps else None, zero_us)
    return Timelines(
        whole=_timeline(placed),
        prefill=_of_step(placed, [step for step in steps if step["name"] == "prefill"], zero_us),
        decode=_of_step(placed, [step for step in steps if step["name"] == "decode"], zero_us),
    )


def _of_step(bars: Sequence[Bar], steps: Sequence[Event], zero_us: float) -> Timeline | None:
    """What began in the step of middle length; kernels may run on after its end."""
    if not steps:
        return None
    middle = sorted(steps, key=lambda step: step["dur"])[len(steps) // 2]
    begin_ms = (float(middle["ts"]) - zero_us) / 1e3
    end_ms = begin_ms + float(middle["dur"]) / 1e3
    inside = [bar for bar in bars if begin_ms - 1e-3 <= bar.begin_ms < end_ms and bar.kind != "waiting"]
    return _timeline([bar.model_copy(update={"begin_ms": bar.begin_ms - begin_ms}) for bar in inside])


def _timeline(bars: Sequence[Bar]) -> Timeline:
    kept = sorted(sorted(bars, key=lambda bar: -bar.length_ms)[:MOST_BARS], key=lambda bar: bar.begin_ms)
    begin_ms = min((bar.begin_ms for bar in kept), default=0.0)
    end_ms = max((bar.begin_ms + bar.length_ms for bar in kept), default=0.0)
    return Timeline(bars=tuple(kept), events=len(bars), begin_ms=begin_ms, end_ms=end_ms)


def _placed(events: Sequence[Event], engine: object, zero_us: float) -> list[Bar]:
    """Every event in its lane and row. Events of one thread nest; those of a stream follow one another."""
    threads: dict[tuple[str, object], list[Event]] = {}
    for event in events:
        threads.setdefault((_lane(event, engine), event["tid"]), []).append(event)
    bars: list[Bar] = []
    for (lane, _), thread in threads.items():
        thread.sort(key=lambda event: (event["ts"], -event["dur"]))
        open_until: list[float] = []
        for event in thread:
            begin_us = float(event["ts"])
            while open_until and open_until[-1] <= begin_us:
                open_until.pop()
            bars.append(_bar(event, lane, len(open_until), begin_us - zero_us))
            open_until.append(begin_us + float(event["dur"]))
    return bars


def _bar(event: Event, lane: str, row: int, begin_us: float) -> Bar:
    kind, args = _kind(event), event.get("args") or {}
    assert kind is not None
    part: Part = "other"
    if kind == "operator":
        part = operator_part(event["name"], args.get("Input type", ()), args.get("Concrete Inputs", ()))
    elif kind == "kernel":
        part = kernel_part(event["name"]) if event["cat"] == "kernel" else "copy"
    # Built without checks: a hundred thousand of them are made of what was checked as it was read.
    return Bar.model_construct(
        name=str(event["name"])[:_MOST_NAME],
        lane=lane,
        row=row,
        kind=kind,
        part=part,
        begin_ms=round(begin_us / 1e3, 4),
        length_ms=round(float(event["dur"]) / 1e3, 4),
    )


def _lane(event: Event, engine: object) -> str:
    if event.get("cat") == QUEUED:
        return "waiting requests"
    if event.get("cat") in _DEVICE:
        return f"GPU stream {event['tid']}"
    return "engine" if event["tid"] == engine else "other threads"


def _kind(event: Event) -> Kind | None:
    category, name = event.get("cat"), event.get("name", "")
    if category in _DEVICE:
        return "kernel"
    if category == QUEUED:
        return "waiting"
    if category not in _CALLS or name.startswith("ProfilerStep#"):
        return None
    if category == "user_annotation":
        return "section"
    return "operator" if category == "cpu_op" else "call"
