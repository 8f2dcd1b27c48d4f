"""Downloads of a report, on whatever page has one: HTML that works offline, CSV, JSON.

This file does not know what the report is about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import streamlit as st

# What makes a report is imported when one is pressed for, not before a page is drawn.
if TYPE_CHECKING:
    from mcp_core.decision.report import Report

__all__ = ["draw"]

_KINDS = (
    ("Report", "html", "text/html", "One HTML file with tables and figures; it works without a network."),
    ("CSV", "csv", "text/csv", "A line a configuration."),
    (
        "JSON",
        "json",
        "application/json",
        "The same as a document; of a decision, what mcp-core verify reads.",
    ),
)


def draw(make: Callable[[], Report], name: str, key: str) -> None:
    """Three buttons; the report is made when one is pressed."""
    with st.container(horizontal=True, vertical_alignment="center"):
        for label, ending, mime, about in _KINDS:
            st.download_button(
                label,
                data=lambda ending=ending: _written(make(), ending),
                file_name=f"{name}.{ending}",
                mime=mime,
                on_click="ignore",
                icon=":material/download:",
                help=about,
                key=f"{key}-{ending}",
            )


def _written(report: Report, ending: str) -> str:
    from mcp_core.decision.report import as_csv, as_html, as_json

    return {"html": as_html, "csv": as_csv, "json": as_json}[ending](report)
