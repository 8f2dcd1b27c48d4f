"""Downloads of a report, on whatever page has one: HTML that works offline, CSV, JSON.

This file does not know what the report is about.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from mcp_core.decision.report import Report, as_csv, as_html, as_json

__all__ = ["draw"]

_KINDS: tuple[tuple[str, str, Callable[[Report], str], str, str], ...] = (
    ("Report", "html", as_html, "text/html", "One HTML file with tables and figures; it works without a network."),
    ("CSV", "csv", as_csv, "text/csv", "A line a configuration."),
    (
        "JSON",
        "json",
        as_json,
        "application/json",
        "The same as a document; of a decision, what mcp-core verify reads.",
    ),
)


def draw(make: Callable[[], Report], name: str, key: str) -> None:
    """Three buttons; the report is made when one is pressed."""
    with st.container(horizontal=True, vertical_alignment="center"):
        for label, ending, write, mime, about in _KINDS:
            st.download_button(
                label,
                data=lambda write=write: write(make()),
                file_name=f"{name}.{ending}",
                mime=mime,
                on_click="ignore",
                icon=":material/download:",
                help=about,
                key=f"{key}-{ending}",
            )
