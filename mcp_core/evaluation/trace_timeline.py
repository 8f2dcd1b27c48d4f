"""The longest events of a trace, placed for drawing: rows of a thread by depth, rows of a device by stream.

A browser draws about 4,000 bars; they are chosen when the trace is kept, for the whole of it and for one step of
each phase. Frozen values; this file does not know how they are drawn.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

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


class _Placed(NamedTuple):
    """An event before it is known whether it is drawn."""

    event: Event
    lane: str
    row: int
    begin_us: float
    length_us: float


def timelines_of(document: dict[str, Any]) -> Timelines:
    """``document`` is a finished trace; times count from its first step."""
    events = [event for event in document["traceEvents"] if event.get("ph") == "X" and _kind(event) is not None]
    steps = [event for event in events if "sequences" in (event.get("args") or {})]
    zero_us = min((float(step["ts"]) for step in steps), default=0.0)
    placed = _placed(events, steps[0]["tid"] if steps else None)
    return Timelines(
        whole=_timeline(placed, zero_us),
        prefill=_of_step(placed, [step for step in steps if step["name"] == "prefill"]),
        decode=_of_step(placed, [step for step in steps if step["name"] == "decode"]),
    )


def _of_step(placed: Sequence[_Placed], steps: Sequence[Event]) -> Timeline | None:
    """What began in the step of middle length; kernels may run on after its end."""
    if not steps:
        return None
    middle = sorted(steps, key=lambda step: step["dur"])[len(steps) // 2]
    begin_us = float(middle["ts"])
    end_us = begin_us + float(middle["dur"])
    inside = [each for each in placed if begin_us <= each.begin_us < end_us and each.event.get("cat") != QUEUED]
    return _timeline(inside, begin_us)


def _timeline(placed: Sequence[_Placed], zero_us: float) -> Timeline:
    longest = heapq.nlargest(MOST_BARS, placed, key=lambda each: each.length_us)
    bars = [_bar(each, zero_us) for each in sorted(longest, key=lambda each: each.begin_us)]
    begin_ms = min((bar.begin_ms for bar in bars), default=0.0)
    end_ms = max((bar.begin_ms + bar.length_ms for bar in bars), default=0.0)
    return Timeline(bars=tuple(bars), events=len(placed), begin_ms=begin_ms, end_ms=end_ms)


def _placed(events: Sequence[Event], engine: object) -> list[_Placed]:
    """Every event in its lane and row. Events of one thread nest; those of a stream follow one another."""
    threads: dict[tuple[str, object], list[Event]] = {}
    for event in events:
        threads.setdefault((_lane(event, engine), event["tid"]), []).append(event)
    placed: list[_Placed] = []
    for (lane, _), thread in threads.items():
        thread.sort(key=lambda event: (event["ts"], -event["dur"]))
        open_until: list[float] = []
        for event in thread:
            begin_us, length_us = float(event["ts"]), float(event["dur"])
            while open_until and open_until[-1] <= begin_us:
                open_until.pop()
            placed.append(_Placed(event, lane, len(open_until), begin_us, length_us))
            open_until.append(begin_us + length_us)
    return placed


def _bar(placed: _Placed, zero_us: float) -> Bar:
    event = placed.event
    kind, args = _kind(event), event.get("args") or {}
    assert kind is not None
    part: Part = "other"
    if kind == "operator":
        part = operator_part(event["name"], args.get("Input type", ()), args.get("Concrete Inputs", ()))
    elif kind == "kernel":
        part = kernel_part(event["name"]) if event["cat"] == "kernel" else "copy"
    return Bar(
        name=str(event["name"])[:_MOST_NAME],
        lane=placed.lane,
        row=placed.row,
        kind=kind,
        part=part,
        begin_ms=round((placed.begin_us - zero_us) / 1e3, 4),
        length_ms=round(placed.length_us / 1e3, 4),
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
