"""The host's side of a trace: operators and sections nested as they were called, and the step that each is in.

This file does not know files or kernels, nor how figures are summed up (``trace_reading.py``, ``trace_rows.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from mcp_core.evaluation.chrome_trace import Event
from mcp_core.evaluation.trace_parts import INHERITED, operator_part
from mcp_core.evaluation.trace_rows import Row, Rows
from mcp_core.trace_summary import Part, Phase

__all__ = ["DEVICE_WAIT", "Frame", "Frames", "Step"]

# The host waits for the device inside such a call, or in a copy to the host.
_WAITS = "Synchronize"
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
DEVICE_WAIT = "device wait"


class Step:
    """One step of the engine while it is summed up; times in us."""

    __slots__ = (
        "begin_us",
        "busy",
        "covered_us",
        "device_parts",
        "end_us",
        "launches",
        "operators",
        "parts",
        "phase",
        "prompt_tokens",
        "sections",
        "sequences",
    )

    def __init__(self, event: Event) -> None:
        self.phase: Phase = event["name"]
        self.begin_us = float(event["ts"])
        self.end_us = self.begin_us + float(event["dur"])
        self.sequences = int(event["args"]["sequences"])
        self.prompt_tokens = int(event["args"]["prompt tokens"])
        self.parts: dict[Part, float] = defaultdict(float)
        self.device_parts: dict[Part, float] = defaultdict(float)
        self.sections: dict[str, float] = defaultdict(float)
        self.busy: list[tuple[float, float]] = []
        self.covered_us = 0.0
        self.operators = 0
        self.launches = 0


class Frame:
    """One call while what it calls is looked at. ``row`` is None for a section."""

    __slots__ = ("dur_us", "end_us", "inherited", "inner_us", "name", "parent", "part", "row", "section", "step")

    def __init__(self, event: Event, parent: Frame | None) -> None:
        self.name: str = event["name"]
        self.dur_us = float(event["dur"])
        self.end_us = float(event["ts"]) + self.dur_us
        self.parent = parent
        self.inherited: Part | None = parent.inherited if parent else None
        self.section: str = parent.section if parent else ""
        self.step: Step | None = parent.step if parent else None
        self.part: Part = "other"
        self.row: Row | None = None
        self.inner_us = 0.0  # of operators inside an operator, of sections inside a section


class Frames:
    """Sweeps threads one after the other. ``copied_back`` are correlations of copies from the device."""

    def __init__(self, rows: Rows, copied_back: Collection[Any]) -> None:
        self.steps: list[Step] = []
        self.launched: dict[Any, Frame | None] = {}
        self.sections: dict[str, tuple[int, float, float]] = {}
        self._rows = rows
        self._copied_back = copied_back
        self._top: Frame | None = None

    def sweep(self, events: Sequence[Event]) -> None:
        """One thread's events in order of their beginning, outer ones first."""
        for event in events:
            self._leave_until(float(event["ts"]))
            category = event.get("cat")
            if category == "cpu_op":
                self._top = self._operator(event)
            elif category == "user_annotation":
                if not event["name"].startswith("ProfilerStep#"):
                    self._top = self._section(event)
            elif event.get("ph") == "X":
                self._runtime_call(event)
            elif self._top is not None and self._top.row is not None:
                self._top.row.memory_bytes = (self._top.row.memory_bytes or 0) + int(event["args"]["Bytes"])
        self._leave_until(float("inf"))

    def _operator(self, event: Event) -> Frame:
        frame, args = Frame(event, self._top), event.get("args") or {}
        own = operator_part(frame.name, args.get("Input type", ()), args.get("Concrete Inputs", ()))
        if frame.inherited is None or (own in INHERITED and frame.inherited != "sampling"):
            frame.part = own
        else:
            frame.part = frame.inherited
        if frame.part in INHERITED:
            frame.inherited = frame.part
        frame.row = self._rows.operator(frame.name, frame.part, frame.step, frame.section)
        frame.row.saw(args.get("Input Dims"))
        return frame

    def _section(self, event: Event) -> Frame:
        frame = Frame(event, self._top)
        frame.section = frame.name
        if "sequences" in (event.get("args") or {}):
            frame.step = Step(event)
            self.steps.append(frame.step)
        elif frame.name == "sampling":
            frame.inherited = "sampling"
        return frame

    def _runtime_call(self, event: Event) -> None:
        correlation, name, top = (event.get("args") or {}).get("correlation"), event["name"], self._top
        if correlation is not None:
            self.launched[correlation] = top
        if top is None or top.step is None:
            return
        if name.startswith(_LAUNCHES):
            top.step.launches += 1
        if _WAITS in name or correlation in self._copied_back:
            top.step.sections[DEVICE_WAIT] += float(event["dur"])
            _section_around(top).inner_us += float(event["dur"])

    def _leave_until(self, at_us: float) -> None:
        """Everything that has ended by then."""
        while self._top is not None and self._top.end_us <= at_us:
            frame, self._top = self._top, self._top.parent
            if frame.row is None:
                self._leave_section(frame)
            else:
                self._leave_operator(frame, frame.row)

    def _leave_operator(self, frame: Frame, row: Row) -> None:
        own_us, parent, step = max(0.0, frame.dur_us - frame.inner_us), frame.parent, frame.step
        row.calls += 1
        row.cpu_self_us += own_us
        row.cpu_total_us += frame.dur_us
        outermost = parent is None or parent.row is None
        if not outermost and parent is not None:
            parent.inner_us += frame.dur_us
        if step is not None:
            step.operators += 1
            step.parts[frame.part] += own_us
            step.covered_us += frame.dur_us if outermost else 0.0

    def _leave_section(self, frame: Frame) -> None:
        own_us = max(0.0, frame.dur_us - frame.inner_us)
        calls, total_us, self_us = self.sections.get(frame.name, (0, 0.0, 0.0))
        self.sections[frame.name] = calls + 1, total_us + frame.dur_us, self_us + own_us
        if frame.step is not None:
            frame.step.sections[frame.name] += own_us
        if frame.parent is not None:
            _section_around(frame.parent).inner_us += frame.dur_us


def _section_around(frame: Frame) -> Frame:
    """The innermost section around a call, itself if it is one; the outermost operator where there is none."""
    while frame.row is not None and frame.parent is not None:
        frame = frame.parent
    return frame
