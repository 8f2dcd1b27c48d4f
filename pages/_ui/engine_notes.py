"""What of a Recipe another engine does not have, or does otherwise: a list under its form."""

from __future__ import annotations

import streamlit as st

from mcp_core.engines import FOREIGN, not_carried
from mcp_core.recipe import Recipe
from pages._ui.recipe_options import in_labels, label_of

__all__ = ["draw_not_carried"]


def draw_not_carried(recipe: Recipe) -> None:
    """The list, under a heading that names the engine; nothing for engines that run in MCP's own interpreter."""
    lines = not_carried(recipe)
    if not lines:
        return
    with st.container(border=True):
        st.markdown(f"##### What {FOREIGN[recipe.engine].title} does otherwise", anchors=False)
        st.caption("The Run keeps this list. What would change the meaning of the Recipe is refused instead.")
        st.markdown("\n".join(f"- {_in_words(line)}" for line in lines))


def _in_words(line: str) -> str:
    """ "field: what it does otherwise" with the field's name on the form."""
    field, _, told = line.partition(": ")
    return f"{label_of(field)}: {in_labels(told)}"
