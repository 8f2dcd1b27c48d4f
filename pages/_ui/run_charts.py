"""Pictures of all Runs of one model under one traffic on one device: frontier, goodput over load, crossover.

This file does not know how Runs are filtered or listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st

from mcp_core.decision.facts import RunFacts
from pages._ui import session, workbench

if TYPE_CHECKING:
    from mcp_core.decision.overview import OverviewPoint

__all__ = ["draw"]

_UNITS = {"concurrency": "users", "rate_s": "requests/s"}
_PICTURES = ("Frontier", "Goodput", "Crossover")
_LEAST_POINTS = 2
_MOST_CURVES = 10


def draw(runs: Sequence[RunFacts]) -> None:
    """Choose whose picture, and which. Nothing where fewer than two points were measured."""
    from mcp_core.decision.overview import groups, points_of

    found = groups(runs)
    if not found:
        return
    with st.container(border=True):
        st.subheader("All configurations")
        left, right = st.columns([3, 2])
        keys = list(found)
        group = left.selectbox(
            "Of",
            keys,
            format_func=found.get,
            help="Figures of different models, workloads or devices do not belong in one picture.",
        )
        picture = right.segmented_control("Picture", _PICTURES, default=_PICTURES[0], required=True, key="picture")
        points = points_of(runs, group)
        if len(points) < _LEAST_POINTS:
            st.caption("One point is no picture: measure a second configuration, or a second load.")
            return
        unit = _UNITS[group.load_kind]
        if picture == "Frontier":
            _frontier(points)
        elif picture == "Goodput":
            _goodput(points, unit)
        else:
            _crossover(points, unit)


def _frontier(points: Sequence[OverviewPoint]) -> None:
    from pages._ui.decision_charts import frontier_figure

    st.plotly_chart(frontier_figure(points), key="frontier")
    st.caption(
        "A point is one configuration at one load. Up and to the right is better; the dotted line joins those, "
        "ringed, that no other beats in both. Colour: mean KL against the unquantized model. Area: KV tokens that "
        "fit."
    )


def _goodput(points: Sequence[OverviewPoint], unit: str) -> None:
    from mcp_core.decision.overview import goodputs
    from pages._ui.decision_charts import goodput_figure

    slo = session.goal().slo
    samples = workbench.get_workbench().decisions.samples([point.facts.id for point in points])
    curves = goodputs(points, slo, samples)
    best = sorted(curves, key=lambda name: -max(rate for _, rate in curves[name]))[:_MOST_CURVES]
    st.plotly_chart(goodput_figure({name: curves[name] for name in best}, unit), key="goodput")
    st.caption(
        "Requests/s that met every latency limit of the Goal on the Decide page, recomputed from request records."
        if slo.limits()
        else "No latency limit is set on the Decide page, so every completed request counts."
    )


def _crossover(points: Sequence[OverviewPoint], unit: str) -> None:
    from mcp_core.decision.overview import crossover
    from pages._ui.decision_charts import crossover_figure

    st.plotly_chart(crossover_figure(points, unit), key="crossover")
    st.caption("Throughput, tok/s. Green: as high as any at that load; blue to violet: a smaller share of it.")
    flips = crossover(points)
    for flip in flips:
        st.markdown(
            f"Between {flip.below:g} and {flip.above:g} {unit} the fastest changes: **{flip.before}**, then "
            f"**{flip.after}**."
        )
    if len({point.load for point in points}) < _LEAST_POINTS:
        st.caption("Measured at one load only: a second one tells whether the fastest changes.")
    elif not flips:
        st.caption("At every two neighbouring loads that were measured, the same configuration is the fastest.")
