"""The Recipe as a document: presets, JSON to copy and download, a document pasted or uploaded.

This file does not know the form that edits the same Recipe.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from mcp_core.presets import RECIPES
from mcp_core.recipe import Recipe
from pages._ui import frame, session

__all__ = ["preset_menu", "recipe_json", "recipe_upload"]


def preset_menu() -> None:
    """Replace the Recipe by a preset."""
    with st.popover("Presets", icon=":material/list:"):
        for name, preset in RECIPES.items():
            st.button(name, key=f"preset-{name}", on_click=_use, args=(preset,), width="stretch", type="tertiary")
            st.caption((preset.__doc__ or "").strip())


def recipe_json(recipe: Recipe) -> None:
    """The document with a copy button, and as a file."""
    st.download_button(
        "Download",
        recipe.to_json(),
        file_name="recipe.json",
        mime="application/json",
        on_click="ignore",
        icon=":material/download:",
    )
    st.code(recipe.to_json(), language="json", height=320)
    st.caption("The same from a shell: `mcp-core serve recipe.json` · `mcp-core footprint recipe.json`")


def recipe_upload() -> None:
    """Take a Recipe from a file or pasted text; an error names the field."""
    uploaded = st.file_uploader("Recipe file", type="json", key="recipe-upload", max_upload_size=1)
    pasted = st.text_area("or paste it here", height=160, key="recipe-pasted", placeholder='{"model": …}')
    document = uploaded.getvalue() if uploaded is not None else (pasted or "").encode()
    if st.button("Use this Recipe", disabled=not document.strip(), key="recipe-use"):
        with frame.errors_shown():
            session.use_recipe(Recipe.from_json(document))
            st.rerun()


def _use(preset: Callable[[], Recipe]) -> None:
    session.use_recipe(preset())
