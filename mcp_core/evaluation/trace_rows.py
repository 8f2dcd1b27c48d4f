"""The operator table while it is summed up: a row for each name, part, phase and section.

This file does not know how events nest (``trace_frames.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from mcp_core.trace_summary import OperatorRow, Part, Phase

if TYPE_CHECKING:
    from mcp_core.evaluation.trace_frames import Frame, Step

__all__ = ["MOST_ROWS", "Row", "Rows"]

# The longest ones are kept; the rest of a step is rarely a hundredth of it.
MOST_ROWS = 300
# Template arguments of a kernel's name go on for a thousand characters.
_MOST_NAME = 160
_MOST_SHAPES = 120

_Key = tuple[str, str, Part, Phase | None, str]


class Row:
    """All calls of one operator or kernel; times in us."""

    __slots__ = (
        "calls",
        "cpu_self_us",
        "cpu_total_us",
        "device_self_us",
        "device_total_us",
        "memory_bytes",
        "shapes",
    )

    def __init__(self) -> None:
        self.calls = 0
        self.cpu_self_us = self.cpu_total_us = self.device_self_us = self.device_total_us = 0.0
        self.memory_bytes: int | None = None
        self.shapes: Counter[str] = Counter()

    @property
    def length_us(self) -> float:
        """What it is ordered by."""
        return self.device_self_us or self.cpu_self_us

    def saw(self, shapes: Sequence[Any] | None) -> None:
        """One call's input shapes, if they were recorded."""
        if shapes is not None:
            self.shapes[str(shapes)] += 1


class Rows:
    """``longest`` gives what has come together."""

    def __init__(self) -> None:
        self._rows: dict[_Key, Row] = {}
        self._has_device = False

    def operator(self, name: str, part: Part, step: Step | None, section: str) -> Row:
        """The row of one call."""
        return self._row("operator", name, part, step, section)

    def add_kernel(self, name: str, part: Part, frame: Frame | None, dur_us: float) -> None:
        """A kernel or copy that ran for so long; ``frame`` launched it, None where that is not known."""
        self._has_device = True
        step, section = (frame.step, frame.section) if frame else (None, "")
        row = self._row("kernel", name, part, step, section)
        row.calls += 1
        row.device_self_us += dur_us
        row.device_total_us += dur_us
        if frame is not None and frame.row is not None:
            frame.row.device_self_us += dur_us
        seen: set[int] = set()
        while frame is not None:
            if frame.row is not None and id(frame.row) not in seen:
                seen.add(id(frame.row))
                frame.row.device_total_us += dur_us
            frame = frame.parent

    def longest(self) -> tuple[OperatorRow, ...]:
        """The rows with the most time of their own, of operators and of kernels each."""
        kept: list[OperatorRow] = []
        for kind in ("kernel", "operator"):
            mine = [(key, row) for key, row in self._rows.items() if key[0] == kind and row.calls]
            mine.sort(key=lambda item: -item[1].length_us)
            kept += [self._value(key, row) for key, row in mine[:MOST_ROWS]]
        return tuple(kept)

    def _row(self, kind: str, name: str, part: Part, step: Step | None, section: str) -> Row:
        key = (kind, name, part, step.phase if step else None, section)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = Row()
        return row

    def _value(self, key: _Key, row: Row) -> OperatorRow:
        kind, name, part, phase, section = key
        on_host: bool = kind == "operator"
        known: Literal["operator", "kernel"] = "operator" if on_host else "kernel"
        ((shapes, _),) = row.shapes.most_common(1) or [("", 0)]
        return OperatorRow(
            name=_short(name, _MOST_NAME),
            kind=known,
            part=part,
            phase=phase,
            section=section,
            calls=row.calls,
            cpu_self_ms=row.cpu_self_us / 1e3 if on_host else None,
            cpu_total_ms=row.cpu_total_us / 1e3 if on_host else None,
            device_self_ms=row.device_self_us / 1e3 if self._has_device else None,
            device_total_ms=row.device_total_us / 1e3 if self._has_device else None,
            memory_bytes=row.memory_bytes,
            shapes=_short(_plain(shapes), _MOST_SHAPES),
        )


def _plain(shapes: str) -> str:
    """Without the places of what has no shape; empty where nothing has one."""
    plain = shapes.replace(", []", "").replace("[], ", "")
    return "" if plain in ("[]", "[[]]") else plain


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
