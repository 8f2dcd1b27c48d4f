"""A Case with its times taken apart: what prefill and decode are of a request, and what their steps consist of.

This file does not know what explains a time (``findings.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_core.evaluation.roofline import Point
from mcp_core.evaluation.time_shares import RequestShares, StepShares, request_shares, step_shares
from mcp_core.evaluation.verdict_values import Case
from mcp_core.generation import PREFILL_CHUNK_TOKENS
from mcp_core.schemes import DeviceKind
from mcp_core.trace_summary import Phase, PhaseSummary

__all__ = ["PhaseView", "View", "phase_of", "view_of"]

# A step of more than twice as many tokens or sequences, or as long, is another step.
_SIMILAR = 2.0
# On an H100's slow host recording made an eager step of NF4 2.1 times as long, and no kernel.
_RECORDED = 4.0


@dataclass(frozen=True, slots=True)
class PhaseView:
    """Prefill or decode: its part of a request's time, its place below the roofline, its steps in a trace."""

    name: Phase
    weight: float
    point: Point | None
    traced: PhaseSummary | None
    shares: StepShares | None

    @property
    def kind(self) -> DeviceKind:
        """What the trace was recorded on."""
        return "cpu" if self.traced is None or self.traced.device_busy_ms is None else "cuda"

    @property
    def memory_side(self) -> bool:
        """Whether its products wait for memory rather than arithmetic; by habit where no ceiling says so."""
        below = self.point.below_ridge if self.point else None
        return self.name == "decode" if below is None else below

    @property
    def reading(self) -> float:
        """Share of a step that reading its bytes takes at best; 0 where that is not known."""
        if self.point is None or self.point.reading_ms is None:
            return 0.0
        step_ms = self.traced.step_ms if self.traced and self.name == "decode" else self.point.ms
        return min(1.0, self.point.reading_ms / step_ms) if step_ms else 0.0


@dataclass(frozen=True, slots=True)
class View:
    """A Case with its times taken apart."""

    case: Case
    request: RequestShares | None
    phases: tuple[PhaseView, ...]

    @property
    def longest(self) -> PhaseView:
        """The phase that takes more of a request."""
        return max(self.phases, key=lambda phase: phase.weight)


def view_of(case: Case) -> View:
    """Raises AssertionError for a Run without a Measurement, which has no times."""
    request = request_shares(case.run)
    weights = (request.prefill, request.decode) if request else _weights_by_client(case)
    points = (case.roofline.prefill, case.roofline.decode) if case.roofline else (None, None)
    names: tuple[Phase, Phase] = ("prefill", "decode")
    phases = []
    for name, weight, point in zip(names, weights, points, strict=True):
        traced = phase_of(case, name)
        shares = step_shares(traced, case.ceilings) if traced else None
        phases.append(PhaseView(name, weight, point, traced, shares))
    return View(case, request, tuple(phases))


def phase_of(case: Case, name: Phase) -> PhaseSummary | None:
    """That phase in the trace, decode steps as long as the Run's own.

    Of a trace that is not the Run's own only where its steps are like the Run's.
    """
    phase = _recorded(case, name)
    if phase is None or name == "prefill" or case.roofline is None:
        return phase
    return _unrecorded(phase, case.roofline.decode.ms)


def _unrecorded(phase: PhaseSummary, step_ms: float | None) -> PhaseSummary:
    """A profiler delays the host and no kernel: on a GPU the gap is at most what the Run's own step leaves.

    The 7B shape on an H100, NF4 as a CUDA graph: 5.98 ms a step, recorded 7.49, with 5.69 of kernels in it.
    """
    if phase.device_busy_ms is None or not step_ms:
        return phase
    gap_ms = min(phase.host_gap_ms, max(0.0, step_ms - phase.device_busy_ms))
    whole_ms = phase.step_ms - phase.host_gap_ms + gap_ms
    return phase.model_copy(update={"host_gap_ms": gap_ms, "step_ms": whole_ms})


def _recorded(case: Case, name: Phase) -> PhaseSummary | None:
    phase = case.trace.phase(name) if case.trace else None
    if phase is None or case.trace is None or case.trace.run_id == case.run.id or case.roofline is None:
        return phase
    if name == "decode":
        alike = _similar(phase.sequences, case.roofline.sequences)
        return phase if alike and _is_step(phase, case.roofline.decode.ms) else None
    chunk = min(case.roofline.prompt_tokens, PREFILL_CHUNK_TOKENS[_kind(case)])
    return phase if _similar(phase.tokens, chunk) else None


def _is_step(phase: PhaseSummary, step_ms: float | None) -> bool:
    """As long; on a GPU also one that only the profiler made longer, whose kernels fit into the Run's step."""
    if _similar(phase.step_ms, step_ms):
        return True
    assert step_ms, "what is not known is similar"
    busy_ms = phase.device_busy_ms
    return busy_ms is not None and busy_ms < step_ms < phase.step_ms < _RECORDED * step_ms


def _similar(one: float | None, other: float | None) -> bool:
    """Within a factor; what is not known is no reason against."""
    return not one or not other or 1 / _SIMILAR <= one / other <= _SIMILAR


def _kind(case: Case) -> DeviceKind:
    return "cuda" if case.recipe.device.startswith("cuda") else "cpu"


def _weights_by_client(case: Case) -> tuple[float, float]:
    """Where the server gives no timing: until the first token, and after it."""
    measured = case.run.measurement
    assert measured is not None, "findings_of has looked"
    first, whole = measured.ttft_ms.mean or 0.0, measured.e2e_ms.mean or 0.0
    return (first / whole, 1.0 - first / whole) if whole else (0.0, 0.0)
