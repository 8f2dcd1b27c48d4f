"""Capacity on a page: limits in, a Goal out; what a search found, point by point.

This file does not know how a capacity is found (``evaluation/capacity.py``) or who starts the search.
"""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from mcp_core.evaluation.capacity import Capacity, CapacityPoint, requests_for
from mcp_core.goal import Goal, LatencyLimits, Slo
from mcp_core.goal_presets import GOALS, goal_preset
from mcp_core.workload import Workload
from pages._ui import format as fmt
from pages._ui import frame

__all__ = ["Asked", "capacity_form", "capacity_result"]

_OWN = "own limits"
_STATISTICS = ("p50", "p90", "p95", "p99")
_LOAD = {
    "concurrency": ("Users at once", "Each sends its next request when its last one was answered."),
    "rate_s": (
        "Arrivals (requests/s)",
        "Requests that are sent a second, whether or not earlier ones were answered.",
    ),
}
_MEETS = (
    "Whether every percentile was within its limit, few enough requests failed and the queue did not grow all the "
    "while. A p95 limit lets one request in twenty be slower, so the attainment may be below 100 %."
)
_ATTAINMENT = "Share of all requests, failed ones too, each of which was within every latency limit."
_GOODPUT = "Requests answered a second, each within every latency limit. Beyond the capacity it falls."


@dataclass(frozen=True, slots=True)
class Asked:
    """What a search is to go by."""

    goal: Goal
    budget_s: float


def capacity_form(workload: Workload) -> Asked:
    """Limits (published ones for this Workload, or one's own) and the time that it may take."""
    known = [name for name in GOALS if goal_preset(name).workload == workload.name]
    chosen = st.segmented_control(
        "Limits",
        [*known, _OWN],
        default=(known or [_OWN])[0],
        required=True,
        format_func=lambda each: each if each == _OWN else "MLPerf's",
        key=f"capacity-limits-{workload.name}",
    )
    slo = _own_limits() if chosen == _OWN else goal_preset(str(chosen)).slo
    if chosen != _OWN:
        st.caption((GOALS[str(chosen)].__doc__ or "").strip())
    minutes = st.number_input(
        "Minutes at most",
        min_value=1,
        value=15,
        step=5,
        help="No load is tried that would, by what the last one took, end later; one still going then is cut.",
        key="capacity-minutes",
    )
    needed = requests_for(slo, workload)
    st.caption(
        f"Each load is measured with at least {needed:,} requests: percentiles, or seeing a queue grow, need them."
    )
    return Asked(Goal(workload=workload, slo=slo), 60.0 * (minutes or 1))


def _own_limits() -> Slo:
    statistic = st.segmented_control(
        "Of the requests",
        _STATISTICS,
        default="p95",
        required=True,
        help="p95 takes 200 requests a load, p99 takes 1,000.",
        key="capacity-statistic",
    )
    left, right = st.columns(2)
    with left:
        ttft_ms = _limit("TTFT at most, ms", "ttft_ms", 500.0)
    with right:
        tpot_ms = _limit("TPOT at most, ms", "tpot_ms", 50.0)
    return Slo(
        ttft_ms=LatencyLimits.model_validate({str(statistic): ttft_ms}),
        tpot_ms=LatencyLimits.model_validate({str(statistic): tpot_ms}),
    )


def _limit(label: str, name: str, value: float) -> float:
    number = st.number_input(
        label, min_value=1.0, value=value, step=10.0, help=fmt.definition(name), key=f"capacity-{name}"
    )
    return float(number or value)


def capacity_result(found: Capacity) -> None:
    """One sentence, what every limit is, and every load that was measured, smallest first."""
    st.markdown(f"**{found.in_words}**")
    took = f"{fmt.count(len(found.points), 'load')} measured in {fmt.duration(found.seconds)}."
    st.caption(f"{took} {found.ended_in_words}".strip())
    if found.limits:
        st.caption(f"Every limit: {' · '.join(found.limits)}")
    if found.points:
        _points(found)


def _points(found: Capacity) -> None:
    column = st.column_config
    st.dataframe(
        [_row(point) for point in sorted(found.points, key=lambda each: each.load)],
        column_config={
            "load": column.NumberColumn(_LOAD[found.kind][0], format="%.4g", help=_LOAD[found.kind][1]),
            "meets": column.TextColumn("Meets every limit", help=_MEETS),
            "attainment": column.NumberColumn("Attainment", format="%.1f %%", help=_ATTAINMENT),
            "goodput": column.NumberColumn("Goodput (requests/s)", format="%.3g", help=_GOODPUT),
            "broken": column.TextColumn("What broke", help="Measured figure and limit."),
            "run": column.LinkColumn("Run", display_text="open", help="Everything that was measured at this load."),
        },
        hide_index=True,
        placeholder=fmt.NOT_MEASURED,
        key="capacity-points",
        alt="Loads that were measured, smallest first, with the limits that broke.",
    )


def _row(point: CapacityPoint) -> dict[str, object]:
    return {
        "load": point.load,
        "meets": "✓ yes" if point.meets else "✕ no",
        "attainment": None if point.attainment is None else 100 * point.attainment,
        "goodput": point.goodput_s,
        "broken": "; ".join(point.broken) or "–",
        "run": frame.address("runs", run=point.run_id),
    }
