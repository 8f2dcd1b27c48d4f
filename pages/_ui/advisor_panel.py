"""The article's best practices as a live checklist of the current Recipe: done, worth trying, not applicable.

This file does not know how a practice is judged (``mcp_core/decision/advisor.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from mcp_core.decision.advisor import GROUPS, Item
from pages._ui import frame, session
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
        if item.measured:
            st.caption(f"Measured here: {frame.plain(item.measured)}")
    with act:
        _actions(item)


def _actions(item: Item) -> None:
    if item.change is not None and item.fields is not None:
        fields = ", ".join(f"{label_of(field)}: {_value(value)}" for field, value in item.fields.items())
        said = f"The Recipe with {fields}"
        if st.button("Open Recipe", key=f"advice-{item.title}", icon=":material/tune:", help=said):
            session.use_recipe(item.change)
            frame.go_to("recipe")
    if item.run_id is not None:
        frame.link("why", "Its Run", icon=":material/query_stats:", run=item.run_id)


def _value(value: object) -> str:
    return "default" if value is None else str(value)
