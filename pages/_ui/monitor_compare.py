"""The Monitor's comparison of two time ranges: which two, and the table of them.

This file does not know how figures are computed (``range_comparison.py``).
"""

from __future__ import annotations

import math
import time
from datetime import datetime, timedelta

import streamlit as st

from mcp_core.monitoring.events import Event
from mcp_core.monitoring.history import Window
from pages._ui import format as fmt
from pages._ui import session, workbench
from pages._ui.monitor_events import clock, local, told
from pages._ui.range_comparison import Compared, compare

__all__ = ["draw"]

DAY_S = 24 * 3600.0
SIDES_S = {"1 min": 60.0, "5 min": 300.0, "15 min": 900.0, "60 min": 3600.0}
_OWN, _LAST = "two ranges of my own", "now and just before"
# Events that divide a before from an after.
_DIVIDING = ("change", "ready", "unload", "job start", "job end", "oom", "died")
MOST_EVENTS = 30

Span = tuple[float, float]


def draw() -> None:
    """Pick A and B, see what changed from one to the other."""
    st.markdown("Means over each range, and what B is of A: 1.20 is 20 % more.")
    events = _dividing_events()
    # By its time, not by its words: a new event must not change what is shown.
    changes = [event.at_s for event in events if event.kind == "change"]
    options = [*changes, _LAST, *(event.at_s for event in events if event.kind != "change"), _OWN]
    words = {event.at_s: f"before and after {clock(event.at_s)}: {told(event)}" for event in events}
    chosen = st.selectbox("Compare", options, format_func=lambda each: words.get(each, each), key="compare-around")
    a, b = _own_spans() if chosen == _OWN else _spans_around(chosen if isinstance(chosen, float) else None)
    watch = workbench.get_workbench().watch
    windows = [watch.history(*span, most_rows=math.inf) for span in (a, b)]
    st.caption(f"A: {_words(a, windows[0])}. B: {_words(b, windows[1])}.")
    rows = compare(*windows)
    if rows:
        st.table([_cells(row) for row in rows], border="horizontal", hide_index=True)
    else:
        st.info("Nothing was sampled in these ranges.")


def _dividing_events() -> list[Event]:
    """Newest first."""
    events = workbench.get_workbench().watch.events(time.time() - DAY_S)
    dividing = [event for event in events if event.kind in _DIVIDING]
    return dividing[: -MOST_EVENTS - 1 : -1]


def _spans_around(divide_s: float | None) -> tuple[Span, Span]:
    """So much before and so much after; without a moment, until now and just before that."""
    side = st.segmented_control("On each side", list(SIDES_S), default="5 min", required=True, key="compare-side")
    side_s, now_s = SIDES_S[side or "5 min"], time.time()
    middle_s = now_s - side_s if divide_s is None else divide_s
    return (middle_s - side_s, middle_s), (middle_s, min(now_s, middle_s + side_s))


def _own_spans() -> tuple[Span, Span]:
    """Two ranges that the visitor types; at first the two quarters of an hour before the comparison was opened."""
    opened = local(session.compare_opened_s())
    quarter = timedelta(minutes=15)
    return _pick("A", opened - 2 * quarter, opened - quarter), _pick("B", opened - quarter, opened)


def _pick(name: str, begin: datetime, end: datetime) -> Span:
    with st.container(horizontal=True):
        first, last = (
            st.datetime_input(f"{name} {word}", _minute(moment), step=60, key=f"compare-{name}-{word}") or moment
            for word, moment in (("from", begin), ("until", end))
        )
    return _epoch_s(first, begin), _epoch_s(last, begin)


def _minute(moment: datetime) -> datetime:
    """As the widget shows it: whole minutes, without a zone."""
    return moment.replace(tzinfo=None, second=0, microsecond=0)


def _epoch_s(moment: datetime, zone_of: datetime) -> float:
    return moment.replace(tzinfo=zone_of.tzinfo).timestamp()


def _words(span: Span, window: Window) -> str:
    finest = f", in means of {fmt.duration(window.span_s)}" if window.span_s > 1 else ""
    return f"{clock(span[0])} to {clock(span[1])} ({fmt.duration(window.seconds)} sampled{finest})"


def _cells(row: Compared) -> dict[str, str]:
    unit = f" ({row.unit})" if row.unit else ""
    return {
        "": row.name + unit,
        "A mean": fmt.number(row.a_mean),
        "B mean": fmt.number(row.b_mean),
        "B / A": fmt.NOT_MEASURED if row.ratio is None else f"{row.ratio:.2f}",
        "A p95": fmt.number(row.a_p95),
        "B p95": fmt.number(row.b_p95),
        "B / A, p95": fmt.NOT_MEASURED if row.ratio_p95 is None else f"{row.ratio_p95:.2f}",
    }
