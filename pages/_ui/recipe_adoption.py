"""A Recipe taken over from elsewhere in the app: the button that does it, and the line that says what it changed.

This file does not know who proposes a Recipe, or how one is edited (``recipe_form.py``).
"""

from __future__ import annotations

from typing import Literal

import streamlit as st

from mcp_core.hardware import Hardware
from mcp_core.recipe import Recipe
from pages._ui import frame, session
from pages._ui.recipe_changes import compare

__all__ = ["adopt_button", "draw_adopted"]

_ELSEWHERE = (
    ":material/block: No Recipe to use: this was measured on a server that MCP did not start, so its settings are "
    "not known here and nothing can be loaded from it."
)


def adopt_button(
    recipe: Recipe,
    by: str,
    *,
    key: str,
    label: str = "Use this Recipe",
    kind: Literal["primary", "secondary"] = "primary",
    meaning: str | None = None,
) -> None:
    """Put ``recipe`` on the Recipe page and go there; ``by`` says who asked. A server elsewhere has none to use."""
    if recipe.model.source == "endpoint":
        st.caption(_ELSEWHERE)
    elif st.button(label, type=kind, icon=":material/tune:", key=key, help=meaning):
        session.use_recipe(recipe, by=by)
        frame.go_to("recipe")


def draw_adopted(recipe: Recipe | None, hardware: Hardware) -> None:
    """What the last such button changed, as long as the Recipe is still the one that it set."""
    adopted = session.adopted_recipe()
    if adopted is None or recipe != adopted.recipe:
        return
    changed = compare(adopted.before, adopted.recipe, hardware)
    told = f"{changed.as_line()}." if changed else "nothing, the Recipe was this one already."
    st.info(f"**Set by {frame.plain(adopted.by)}:** {told}", icon=":material/tune:")
