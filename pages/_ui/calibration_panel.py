"""Calibration as a tool: add a text, run it through the dense model, see the ranges and the search for alpha.

This file does not know how ranges are found (``mcp_core/memory/calibration.py``).
"""

from __future__ import annotations

import streamlit as st

from mcp_core.conflicts import options_read_by
from mcp_core.recipe import Recipe
from pages._ui import session
from pages._ui.calibration_form import add_text

__all__ = ["calibration_panel"]


def calibration_panel(recipe: Recipe) -> None:
    """For a static scheme: its text and what calibrating found; nothing for others, which need none."""
    if "calibration" not in options_read_by(recipe.quantization.scheme):
        return
    st.markdown("##### Calibration", anchors=False)
    with st.expander("Calibrate on your own text", icon=":material/upload_file:"):
        added = add_text("calibration-text")
        if added is not None:
            session.use_recipe(recipe.replace({"quantization.calibration.text": added}))
            st.rerun()
