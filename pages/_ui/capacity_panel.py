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

__all__ = ["Asked", "capacity_form", "capacity_result"]

_OWN = "own limits"
_STATISTICS = ("p50", "p90", "p95", "p99")
_ENDINGS = {
    "budget": "The time was up before the gap was closed.",
    "range": "No load that could be asked for was on the other side.",
    "failed": "The server was gone.",
    "cancelled": "It was stopped; its points are kept.",
}


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
        help="No load is tried that would, by what the last one took, end later.",
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
    """One sentence, and every load that was measured, by load."""
    st.markdown(f"**{found.in_words}**")
    took = f"{fmt.count(len(found.points), 'load')} measured in {fmt.duration(found.seconds)}."
    st.caption(f"{took} {_ENDINGS.get(found.ended, '')}".strip())
    if not found.points:
        return
    unit = "Clients" if found.kind == "concurrency" else "Requests/s"
    st.dataframe(
        [_row(unit, point) for point in sorted(found.points, key=lambda each: each.load)],
        column_config={
            "Met every limit, % of requests": st.column_config.NumberColumn(
                format="%.1f",
                help="Attainment: share of all requests, failed ones too, within every latency limit.",
            ),
            "Goodput, requests/s": st.column_config.NumberColumn(
                format="%.2f", help="Requests a second that met every latency limit."
            ),
        },
        hide_index=True,
        key="capacity-points",
        alt="Loads that were measured, smallest first, with the limits that broke.",
    )


def _row(unit: str, point: CapacityPoint) -> dict[str, object]:
    return {
        unit: f"{point.load:.4g}",
        "Meets the limits": "yes" if point.meets else "no",
        "Met every limit, % of requests": None if point.attainment is None else 100 * point.attainment,
        "Goodput, requests/s": point.goodput_s,
        "Broken": "; ".join(point.broken) or "–",
        "Run": point.run_id,
    }
