"""The article's best practices as a live checklist of the current Recipe: done, worth trying, not applicable.

This file does not know how a practice is judged (``mcp_core/decision/advisor.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from mcp_core.decision.advisor import GROUPS, Item
from pages._ui import frame
from pages._ui.recipe_adoption import adopt_button
from pages._ui.recipe_options import in_labels, label_of

__all__ = ["advisor_panel"]

_MARKS = {
    "done": (":material/check_circle:", "green"),
    "worth trying": (":material/lightbulb:", "blue"),
    "not applicable": (":material/block:", "gray"),
}


def advisor_panel(items: Sequence[Item]) -> None:
    """A part for each group of practices, a row for each practice."""
    counts = [(status, sum(item.status == status for item in items)) for status in _MARKS]
    st.caption(" · ".join(f"{count} {status}" for status, count in counts))
    for group in GROUPS:
        with st.container(border=True):
            st.subheader(group)
            for item in items:
                if item.group == group:
                    _row(item)


def _row(item: Item) -> None:
    what, why, act = st.columns([3, 6, 2], vertical_alignment="top")
    icon, colour = _MARKS[item.status]
    with what, st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{frame.plain(item.title)}**", width="content")
        st.badge(item.status, icon=icon, color=colour)  # type: ignore[arg-type]
    with why:
        st.markdown(frame.plain(in_labels(item.reason)))
        if item.expected:
            st.caption(f"Expected: {frame.plain(item.expected)}")
        if item.fields:
            fields = ", ".join(f"{label_of(field)}: {_value(value)}" for field, value in item.fields.items())
            st.caption(f"Sets {frame.plain(fields)}.")
        if item.measured:
            st.caption(f"Measured here: {frame.plain(item.measured)}")
    with act:
        _actions(item)


def _actions(item: Item) -> None:
    if item.change is not None:
        adopt_button(
            item.change,
            f"the Handbook's advice on {item.title}",
            key=f"advice-{item.title}",
            label="Set it",
            kind="secondary",
            meaning="Changes the Recipe on the Recipe page, and opens it. Nothing is loaded yet.",
        )
    if item.run_id is not None:
        frame.link("why", "Its Run", icon=":material/query_stats:", run=item.run_id)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "default" if value is None else str(value)
