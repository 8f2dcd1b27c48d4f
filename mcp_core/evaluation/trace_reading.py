"""A kept trace → TraceSummary: what each phase's time went to, by part, section and operator.

Operators nest on their thread; a kernel belongs to the operator, section and step that launched it, wherever
in time it ran. This file does not know names (``trace_parts.py``) or files (``chrome_trace.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mcp_core.errors import InputError
from mcp_core.evaluation.chrome_trace import Event, read_trace, uncollected
from mcp_core.evaluation.trace_finishing import QUEUED
from mcp_core.evaluation.trace_frames import Frames, Step
from mcp_core.evaluation.trace_parts import kernel_part
from mcp_core.evaluation.trace_rows import Rows
from mcp_core.trace_summary import Part, Phase, PhaseSummary, SectionTotal, TraceSummary

__all__ = ["read_summary", "summarize"]

Key = TypeVar("Key", bound=str)

_HOST = frozenset({"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"})
_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})


def read_summary(path: Path) -> TraceSummary:
    """Read a file that was kept. Raises InputError for one that is broken or was not recorded by MCP."""
    document = read_trace(path)
    return summarize(document).model_copy(update={"path": str(path)})


def summarize(document: dict[str, Any]) -> TraceSummary:
    """Raises InputError for a document without MCP's steps, or with events that make no sense."""
    about = document.get("mcp")
    if not isinstance(about, dict):
        raise InputError(
            "This trace was not recorded by MCP: it does not say which step is which.",
            "Open it in Perfetto, or record one: mcp-core profile RECIPE --out DIR.",
        )
    try:
        with uncollected():
            return _Reader(document["traceEvents"], about).summary()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"The trace has an event that is not understood: {error!r}.", "Record it again."
        ) from error


class _Reader:
    """One document while it is read."""

    def __init__(self, events: list[Event], about: dict[str, Any]) -> None:
        self._about = about
        self._count = len(events)
        self._rows = Rows()
        self._device = [event for event in events if event.get("cat") in _DEVICE and event.get("ph") == "X"]
        copied_back = {_correlation(event) for event in self._device if "DtoH" in event["name"]}
        self._frames = Frames(self._rows, copied_back - {None})
        self._waits = [float(event["dur"]) for event in events if event.get("cat") == QUEUED]
        for thread in _by_thread(events).values():
            self._frames.sweep(thread)

    def summary(self) -> TraceSummary:
        steps = sorted(self._frames.steps, key=lambda step: step.begin_us)
        if not steps:
            raise InputError("The trace holds no step of an engine.", "Record it while the worker is asked.")
        self._place_kernels()
        about = {key: value for key, value in self._about.items() if key in TraceSummary.model_fields}
        return TraceSummary(
            **about | {"events": self._count},
            wall_ms=(max(step.end_us for step in steps) - steps[0].begin_us) / 1e3,
            prefill=self._phase("prefill", steps),
            decode=self._phase("decode", steps),
            sections=self._sections(),
            operators=self._rows.longest(),
        )

    def _place_kernels(self) -> None:
        for event in self._device:
            frame = self._frames.launched.get(_correlation(event))
            begin_us, dur_us = float(event["ts"]), float(event["dur"])
            kernel = event["cat"] == "kernel"
            part: Part = kernel_part(event["name"], frame.inherited if frame else None) if kernel else "copy"
            step = frame.step if frame else None
            if step is not None:
                step.busy.append((begin_us, begin_us + dur_us))
                step.device_parts[part] += dur_us
            self._rows.add_kernel(event["name"], part, frame, dur_us)

    def _phase(self, phase: Phase, steps: Sequence[Step]) -> PhaseSummary | None:
        mine = [step for step in steps if step.phase == phase]
        if not mine:
            return None
        on_device, count = bool(self._device), len(mine)
        step_ms = sum(step.end_us - step.begin_us for step in mine) / count / 1e3
        busy_ms = sum(_union_us(step.busy) for step in mine) / count / 1e3
        occupied_ms = busy_ms if on_device else sum(step.covered_us for step in mine) / count / 1e3
        return PhaseSummary(
            steps=count,
            sequences=sum(step.sequences for step in mine) / count,
            tokens=sum(step.prompt_tokens or step.sequences for step in mine) / count,
            step_ms=step_ms,
            device_busy_ms=busy_ms if on_device else None,
            parts_ms=_mean_ms((step.device_parts if on_device else step.parts for step in mine), count),
            host_gap_ms=max(0.0, step_ms - occupied_ms),
            launches=sum(step.launches if on_device else step.operators for step in mine) / count,
            sections_ms=_mean_ms((step.sections for step in mine), count),
        )

    def _sections(self) -> tuple[SectionTotal, ...]:
        sections = [
            SectionTotal(name=name, calls=calls, total_ms=total_us / 1e3, self_ms=own_us / 1e3)
            for name, (calls, total_us, own_us) in self._frames.sections.items()
        ]
        if self._waits:
            waited_ms = sum(self._waits) / 1e3
            sections.append(
                SectionTotal(name="queued", calls=len(self._waits), total_ms=waited_ms, self_ms=waited_ms)
            )
        return tuple(sorted(sections, key=lambda section: -section.total_ms))


def _by_thread(events: Iterable[Event]) -> dict[tuple[object, object], list[Event]]:
    """What happened on each thread of the host, in order, whoever began first around what began later."""
    threads: dict[tuple[object, object], list[Event]] = defaultdict(list)
    for event in events:
        if event.get("cat") in _HOST if event.get("ph") == "X" else event.get("name") == "[memory]":
            threads[event["pid"], event["tid"]].append(event)
    for thread in threads.values():
        thread.sort(key=lambda event: (event["ts"], -event.get("dur", 0.0)))
    return threads


def _correlation(event: Event) -> Any:
    return (event.get("args") or {}).get("correlation")


def _union_us(intervals: Iterable[tuple[float, float]]) -> float:
    """Time covered by at least one of them."""
    total_us, until_us = 0.0, float("-inf")
    for begin_us, end_us in sorted(intervals):
        total_us += max(0.0, end_us - max(begin_us, until_us))
        until_us = max(until_us, end_us)
    return total_us


def _mean_ms(counts: Iterable[dict[Key, float]], steps: int) -> dict[Key, float]:
    sums: dict[Key, float] = defaultdict(float)
    for each in counts:
        for key, value_us in each.items():
            sums[key] += value_us / 1e3 / steps
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
