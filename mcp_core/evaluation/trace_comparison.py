"""Two traces beside each other: what a step's parts cost in each, which operators and kernels came or went.

This file does not know how a trace was read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mcp_core.trace_summary import PARTS, OperatorRow, Part, Phase, TraceSummary

__all__ = ["Change", "Difference", "differences", "part_differences"]

Change = Literal["appeared", "vanished", "more", "less", "same"]

# Below this share of the step a difference is noise.
_SAME = 0.01


@dataclass(frozen=True, slots=True)
class Difference:
    """One operator, kernel or part in both traces, ms a step of its own; None where it does not occur."""

    name: str
    part: Part
    before_ms: float | None
    after_ms: float | None
    before_calls: float | None
    after_calls: float | None
    change: Change

    @property
    def delta_ms(self) -> float:
        """How much more the second trace spends on it."""
        return (self.after_ms or 0.0) - (self.before_ms or 0.0)


def differences(before: TraceSummary, after: TraceSummary, phase: Phase) -> tuple[Difference, ...]:
    """Kernels where both were recorded on a GPU, else operators; largest difference first."""
    kind: Literal["kernel", "operator"] = "kernel" if _on_device(before) and _on_device(after) else "operator"
    first, second = _per_step(before, phase, kind), _per_step(after, phase, kind)
    smallest_ms = _SAME * max(_step_ms(before, phase), _step_ms(after, phase))
    rows = [
        _difference(key, first.get(key), second.get(key), smallest_ms) for key in dict.fromkeys((*first, *second))
    ]
    return tuple(sorted(rows, key=lambda row: -abs(row.delta_ms)))


def part_differences(before: TraceSummary, after: TraceSummary, phase: Phase) -> tuple[Difference, ...]:
    """What each part of a step takes in both, in the order of PARTS; parts that neither has are left out."""
    first, second = _parts_ms(before, phase), _parts_ms(after, phase)
    smallest_ms = _SAME * max(_step_ms(before, phase), _step_ms(after, phase))
    spent = [(part, first.get(part), second.get(part)) for part in PARTS]
    return tuple(
        Difference(part, part, one, other, None, None, _change(one, other, smallest_ms))
        for part, one, other in spent
        if one is not None or other is not None
    )


_PerStep = dict[tuple[str, Part], tuple[float, float]]


def _per_step(summary: TraceSummary, phase: Phase, kind: str) -> _PerStep:
    """(name, part) -> own ms and calls, a step of the phase."""
    spent = summary.phase(phase)
    sums: dict[tuple[str, Part], tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for row in _rows(summary.operators, phase, kind):
        own_ms = row.device_self_ms if kind == "kernel" else row.cpu_self_ms
        total_ms, calls = sums[row.name, row.part]
        sums[row.name, row.part] = total_ms + (own_ms or 0.0), calls + row.calls
    steps = spent.steps if spent else 1
    return {key: (total_ms / steps, calls / steps) for key, (total_ms, calls) in sums.items()}


def _rows(rows: Iterable[OperatorRow], phase: Phase, kind: str) -> Iterable[OperatorRow]:
    return (row for row in rows if row.phase == phase and row.kind == kind)


def _difference(
    key: tuple[str, Part], one: tuple[float, float] | None, other: tuple[float, float] | None, smallest_ms: float
) -> Difference:
    before_ms, before_calls = one or (None, None)
    after_ms, after_calls = other or (None, None)
    change = _change(before_ms, after_ms, smallest_ms)
    return Difference(*key, before_ms, after_ms, before_calls, after_calls, change)


def _change(before_ms: float | None, after_ms: float | None, smallest_ms: float) -> Change:
    if before_ms is None:
        return "appeared"
    if after_ms is None:
        return "vanished"
    if abs(after_ms - before_ms) <= smallest_ms:
        return "same"
    return "more" if after_ms > before_ms else "less"


def _on_device(summary: TraceSummary) -> bool:
    return any(row.kind == "kernel" for row in summary.operators)


def _parts_ms(summary: TraceSummary, phase: Phase) -> dict[Part, float]:
    spent = summary.phase(phase)
    return spent.parts_ms if spent else {}


def _step_ms(summary: TraceSummary, phase: Phase) -> float:
    spent = summary.phase(phase)
    return spent.step_ms if spent else 0.0
