"""What is known of a Run whose cause is asked, and the answer: a cause, its evidence, one change. Frozen values.

This file does not know how a cause is found (``verdicts.py``) or which change helps (``remedies.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mcp_core.ceilings import Ceilings
from mcp_core.evaluation.roofline import Roofline
from mcp_core.hardware import Hardware
from mcp_core.models.architecture import ResolvedModel
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.recipe import Recipe
from mcp_core.results import Run
from mcp_core.trace_summary import TraceSummary

__all__ = ["CAUSES", "Case", "Cause", "Change", "Confidence", "Finding", "Line", "Verdict"]

Cause = Literal[
    "launch", "bandwidth", "compute", "dequantization", "queue", "host", "capacity", "throttled", "undecided"
]
Confidence = Literal["high", "medium", "low"]

# What each cause is called, and what it means.
CAUSES: dict[Cause, tuple[str, str]] = {
    "launch": ("Launch-bound", "Starting operations one by one takes longer than computing them."),
    "bandwidth": ("Bandwidth-bound", "Reading weights, keys and values from memory takes the time."),
    "compute": ("Compute-bound", "Multiplying takes the time; memory could be read faster."),
    "dequantization": ("Dequantization-bound", "Turning packed weights into numbers takes the time."),
    "queue": ("Queue-bound", "Requests wait for their turn most of the time."),
    "host": ("Host-bound", "The device waits for Python: tokenizer, sampling, HTTP or the engine's own loop."),
    "capacity": ("Memory-capacity-bound", "Keys and values of the requests do not fit at once."),
    "throttled": ("Throttled", "The device lowers its clocks because of heat or power."),
    "undecided": ("Undecided", "What is known explains too little of the time."),
}


@dataclass(frozen=True, slots=True)
class Line:
    """One piece of evidence: what, its figure with a unit, and the limit that it is held against ("": none)."""

    what: str
    figure: str
    limit: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """The one change of the Recipe that is most likely to help, and what is expected of it.

    ``level`` is DESIGN.md's evidence level of ``expected``: predicted, or measured on an engine.
    """

    recipe: Recipe
    fields: Mapping[str, Any]
    says: str
    expected: str
    level: str = "predicted"
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A cause that explains ``share`` of a request's time (0..1)."""

    cause: Cause
    share: float
    sentence: str
    evidence: tuple[Line, ...]
    confidence: Confidence = "medium"
    urgent: bool = False  # named before any larger share: what it says spoils the other figures


@dataclass(frozen=True, slots=True)
class Verdict:
    """The cause that was found, or "undecided" with what would decide it. ``others`` explain less."""

    finding: Finding
    change: Change | None = None
    advice: str = ""
    to_decide: tuple[str, ...] = ()
    others: tuple[Finding, ...] = ()

    @property
    def cause(self) -> Cause:
        """Its cause."""
        return self.finding.cause

    @property
    def title(self) -> str:
        """As "Queue-bound"."""
        return CAUSES[self.cause][0]


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that is known of one Run. What is missing narrows what can be said; nothing is guessed for it.

    ``model`` lets a change's floor be computed; ``runs`` are stored ones among which a change may be measured.
    """

    run: Run
    machine: Hardware
    roofline: Roofline | None = None
    ceilings: Ceilings | None = None
    trace: TraceSummary | None = None
    telemetry: RunTelemetry | None = None
    model: ResolvedModel | None = None
    runs: tuple[Run, ...] = field(default=(), repr=False)

    @property
    def recipe(self) -> Recipe:
        """The Run's."""
        return self.run.recipe
