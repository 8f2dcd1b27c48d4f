"""What happened: marks for the charts' time axes, and a list beneath them.

This file does not know how an event was found (``monitoring/events.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import streamlit as st

from mcp_core.monitoring.events import Event
from pages._ui import frame
from pages._ui.charts import FAILED_COLOUR, PALETTE, Mark
from pages._ui.recipe_options import in_labels

__all__ = ["clock", "draw_list", "local", "marks", "told"]

MOST_LISTED = 20

_COLOURS = {
    "load": PALETTE[9],
    "ready": PALETTE[2],
    "unload": PALETTE[9],
    "change": PALETTE[4],
    "job start": PALETTE[5],
    "job end": PALETTE[5],
}
_BADGES = {
    "ready": "green",
    "change": "violet",
    "job start": "orange",
    "job end": "orange",
    "failed": "red",
    "oom": "red",
    "died": "red",
}
_WORDS = {"oom": "out of memory"}


def marks(events: Sequence[Event]) -> tuple[Mark, ...]:
    """A dashed line for each event, coloured by its kind; failures are red."""
    return tuple(Mark(event.at_s, _COLOURS.get(event.kind, FAILED_COLOUR)) for event in events)


def draw_list(events: Sequence[Event]) -> None:
    """The newest events of the range, newest first; nothing when there are none."""
    if not events:
        return
    st.subheader("What happened", help="Each is a dashed line in the charts above. Kept for 24 hours.")
    rows = [
        f"| {clock(event.at_s)} | :{_BADGES.get(event.kind, 'gray')}-badge[{_WORDS.get(event.kind, event.kind)}] "
        f"| {frame.plain(told(event))} |"
        for event in reversed(events[-MOST_LISTED:])
    ]
    st.markdown("\n".join(["| time | what | |", "|---|---|---|", *rows]))
    if len(events) > MOST_LISTED:
        st.caption(f"The newest {MOST_LISTED} of {len(events):,}.")


def told(event: Event) -> str:
    """An event in a sentence, fields of a Recipe as the form names them."""
    return in_labels(event.text)


def clock(at_s: float) -> str:
    """The time of day where the browser is, with the date when it was not today."""
    moment, today = local(at_s), datetime.now(_zone()).date()
    return f"{moment:%H:%M:%S}" if moment.date() == today else f"{moment:%d %b %H:%M:%S}"


def local(at_s: float) -> datetime:
    """A moment (seconds since 1970) in the browser's time zone, which the charts' axes use, too."""
    return datetime.fromtimestamp(at_s, _zone())


def _zone() -> tzinfo | None:
    try:
        return ZoneInfo(st.context.timezone or "")
    except (ZoneInfoNotFoundError, ValueError):
        return datetime.now().astimezone().tzinfo
