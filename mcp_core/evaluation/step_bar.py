"""One decode step as a bar: weights, keys and values, attention, dequantization, sampling, the rest, the host gap.

From a trace, or without one what reading takes at least. Two bars say which part made a Recipe slower. This file
does not know how a bar is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_core.evaluation.case_view import phase_of
from mcp_core.evaluation.verdict_words import ms, percent
from mcp_core.evaluation.why import Explanation
from mcp_core.trace_summary import Part, PhaseSummary

__all__ = ["PARTS", "UNEXPLAINED", "StepBar", "bar_of", "why_slower"]

UNEXPLAINED = "not explained"
# What a bar is made of, in its order. "Weights" are products of matrices, which at small batches read them.
PARTS: dict[str, tuple[Part, ...]] = {
    "weights": ("gemm", "communication"),
    "keys and values": ("kv",),
    "attention": ("attention",),
    "dequantization": ("dequantization",),
    "sampling": ("sampling",),
    "other operations": ("elementwise", "other", "copy"),
}
_GAP = "host gap"
# A difference smaller than this is not worth a sentence.
_NOTHING = 0.03


@dataclass(frozen=True, slots=True)
class StepBar:
    """Parts of one decode step, ms, in order; ``measured`` says whether a trace split it, else it is a floor."""

    parts: tuple[tuple[str, float], ...]
    measured: bool
    step_ms: float


def bar_of(found: Explanation) -> StepBar | None:
    """None where neither a trace nor a floor is known."""
    traced = phase_of(found.case, "decode")
    if traced is not None:
        return _traced(traced)
    point = found.roofline.decode if found.roofline else None
    if point is None or point.ms is None or not point.bandwidth_bytes_s:
        return None
    weights_ms, kv_ms = (
        each / point.bandwidth_bytes_s * 1e3 for each in (point.work.weights_bytes, point.work.kv_bytes)
    )
    rest_ms = max(0.0, point.ms - weights_ms - kv_ms)
    parts = (("weights", weights_ms), ("keys and values", kv_ms), (UNEXPLAINED, rest_ms))
    return StepBar(parts, measured=False, step_ms=point.ms)


def _traced(decode: PhaseSummary) -> StepBar:
    parts = [(name, sum(decode.parts_ms.get(part, 0.0) for part in of)) for name, of in PARTS.items()]
    return StepBar((*parts, (_GAP, decode.host_gap_ms)), measured=True, step_ms=decode.step_ms)


def why_slower(one: Explanation, other: Explanation) -> str:
    """What sets the second Run's decode step apart from the first's, in a sentence or two; empty without times."""
    before, after = (_step_ms(each) for each in (one, other))
    if not before or not after:
        return ""
    return " ".join(filter(None, (_times(before, after), _bytes(one, other), _parts(one, other))))


def _step_ms(found: Explanation) -> float | None:
    return found.roofline.decode.ms if found.roofline else None


def _times(before: float, after: float) -> str:
    ratio = after / before
    if abs(ratio - 1) < _NOTHING:
        return f"A decode step takes as long: {ms(before)} and {ms(after)}."
    words = f"{ratio:.2f} times as long" if ratio > 1 else f"{1 / ratio:.2f} times as fast"
    return f"A decode step is {words}: {ms(after)} against {ms(before)}."


def _bytes(one: Explanation, other: Explanation) -> str:
    if one.roofline is None or other.roofline is None:
        return ""
    share = other.roofline.decode.work.bytes / one.roofline.decode.work.bytes
    return f"It reads {percent(share)} of the bytes." if abs(share - 1) >= _NOTHING else "It reads as many bytes."


def _parts(one: Explanation, other: Explanation) -> str:
    """The part that grew or shrank most; only where traces split both steps."""
    first, second = bar_of(one), bar_of(other)
    if first is None or second is None or not (first.measured and second.measured):
        return "A profile of both would say which part."
    grown = [(name, took - dict(first.parts).get(name, 0.0)) for name, took in second.parts]
    name, by_ms = max(grown, key=lambda each: abs(each[1]))
    return f"Most of the difference is {name}: {ms(abs(by_ms))} {'more' if by_ms > 0 else 'less'} by the profiles."
