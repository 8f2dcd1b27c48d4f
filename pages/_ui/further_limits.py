"""Limits of a Goal that its form has no field for: every one is listed, with a button that drops it.

The form has one field a latency and one for fidelity, a link or a file may hold several. This file does not know
how the fields are drawn (``goal_form.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import streamlit as st

from mcp_core.evaluation.attainment import limit_words
from mcp_core.goal import METRICS, Goal
from pages._ui import session
from pages._ui.frame import plain

__all__ = ["beyond_the_form", "draw", "first_of"]

_FIDELITY = {
    "kl_over_floor_max": "KL ≤ {:g} times the noise floor",
    "kl_max": "KL ≤ {:g} nats",
    "top1_min": "top-1 agreement ≥ {:.4g}",
}
# A limit by its place in the Goal's document.
Place = tuple[str, ...]


def first_of(limits: dict[str, float]) -> str | None:
    """Which of one latency's, or of fidelity's, limits the form's field shows: the last, the tail."""
    return next(reversed(limits), None)


def beyond_the_form(goal: Goal) -> Goal:
    """Nothing but the limits that the form's fields do not show."""
    slo = {metric: _rest(getattr(goal.slo, metric).model_dump(exclude_none=True)) for metric in METRICS}
    fidelity = _rest(goal.fidelity.model_dump(exclude_none=True))
    return Goal.from_dict({"slo": slo, "fidelity": fidelity, "device": goal.device})


def draw(further: Goal) -> None:
    """List them; a button takes one out of this visit's Goal and draws the form anew."""
    listed = list(_listed(further))
    if not listed:
        return
    st.caption("These limits hold too; the fields above have no place for them.")
    with st.container(horizontal=True):
        for place, words in listed:
            if st.button(
                plain(words),
                icon=":material/close:",
                key=f"drop-{'-'.join(place)}-{session.goal_revision()}",
                help="Drop this limit.",
            ):
                session.set_goal(_without(session.goal(), place))
                session.redraw_goal()
                st.rerun()


def _rest(limits: dict[str, float]) -> dict[str, float]:
    return {name: limit for name, limit in limits.items() if name != first_of(limits)}


def _listed(goal: Goal) -> Iterator[tuple[Place, str]]:
    for limit in goal.slo.limits():
        yield ("slo", limit.metric, limit.statistic), limit_words(limit)
    for name, words in _FIDELITY.items():
        value = getattr(goal.fidelity, name)
        if value is not None:
            yield ("fidelity", name), words.format(value)
    if goal.device is not None:
        yield ("device",), f"Measured on {goal.device}"


def _without(goal: Goal, place: Place) -> Goal:
    document: dict[str, Any] = goal.model_dump(mode="json")
    part = document
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = None
    return Goal.from_dict(document)
