"""A kept trace as speedscope's own file format: one flame graph of the engine's thread.

speedscope cannot read torch's traces as they are (threads that are texts: jlfwong/speedscope#470). The format:
https://www.speedscope.app/file-format-schema.json, "evented". This file does not know what is kept where.
"""

from __future__ import annotations

from typing import Any

from mcp_core.errors import InputError
from mcp_core.evaluation.chrome_trace import Event

__all__ = ["MOST_CALLS", "flame_graph"]

# What a browser reads in half a second; the shortest calls beyond are left out.
MOST_CALLS = 50_000

_SHOWN = frozenset({"cpu_op", "user_annotation", "python_function", "cuda_runtime", "cuda_driver"})


def flame_graph(document: dict[str, Any], title: str) -> dict[str, Any]:
    """Operators and sections of the thread that did the steps, nested, us; ``leftOut`` of them are missing.

    Raises InputError without a step.
    """
    events = [
        event
        for event in document["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in _SHOWN and not event["name"].startswith("ProfilerStep#")
    ]
    step = next((event for event in events if "sequences" in (event.get("args") or {})), None)
    if step is None:
        raise InputError("The trace holds no step of an engine.", "Record it while the worker is asked.")
    thread = [event for event in events if event["tid"] == step["tid"]]
    shown = sorted(thread, key=lambda event: -event["dur"])[:MOST_CALLS]
    shown.sort(key=lambda event: (event["ts"], -event["dur"]))
    frames: dict[str, int] = {}
    marks = _marks(shown, frames)
    profile = {
        "type": "evented",
        "name": title,
        "unit": "microseconds",
        "startValue": marks[0]["at"],
        "endValue": marks[-1]["at"],
        "events": marks,
    }
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": title,
        "exporter": "MCP, Master Control Program",
        "shared": {"frames": [{"name": name} for name in frames]},
        "profiles": [profile],
        "leftOut": len(thread) - len(shown),
    }


def _marks(thread: list[Event], frames: dict[str, int]) -> list[dict[str, Any]]:
    """Openings and closings in order. An event that outlasts its caller by a rounding is cut to it."""
    zero_us = float(thread[0]["ts"])
    marks: list[dict[str, Any]] = []
    open_until: list[tuple[float, int]] = []
    for event in thread:
        begin_us = float(event["ts"]) - zero_us
        _close(open_until, begin_us, marks)
        end_us = begin_us + float(event["dur"])
        if open_until:
            end_us = min(end_us, open_until[-1][0])
        frame = frames.setdefault(event["name"], len(frames))
        marks.append({"type": "O", "frame": frame, "at": round(begin_us, 3)})
        open_until.append((end_us, frame))
    _close(open_until, float("inf"), marks)
    return marks


def _close(open_until: list[tuple[float, int]], until_us: float, marks: list[dict[str, Any]]) -> None:
    while open_until and open_until[-1][0] <= until_us:
        end_us, frame = open_until.pop()
        marks.append({"type": "C", "frame": frame, "at": round(end_us, 3)})
