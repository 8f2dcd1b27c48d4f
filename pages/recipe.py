"""Recipe page: choose a model and how it is served, see what it needs, load it."""

from __future__ import annotations

import streamlit as st

from mcp_core.errors import McpError
from mcp_core.hardware import Hardware
from mcp_core.models.footprint import Footprint
from mcp_core.recipe import Recipe, SchemeName
from mcp_core.schemes import SCHEMES
from pages._ui import frame, session, workbench
from pages._ui.footprint_chart import SchemeRow, draw_footprint, draw_scheme_table
from pages._ui.hub_token import current_token
from pages._ui.load_panel import load_panel
from pages._ui.model_shelf import model_shelf
from pages._ui.recipe_document import preset_menu, recipe_json, recipe_upload
from pages._ui.recipe_form import recipe_form
from pages._ui.recipe_options import options_of

frame.require("recipe")


def draw() -> None:
    """Form on the left; what it needs and what can be done with it on the right; the rest below."""
    hardware = workbench.get_workbench().hardware()
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title("Recipe")
        preset_menu()
    form, result = st.columns([6, 5], gap="medium")
    with form:
        recipe = _edited(hardware)
    with result:
        with st.container(border=True):
            footprint = _footprint(recipe)
        load_panel(recipe, footprint, hardware)
    _more(recipe, footprint, hardware)


def _edited(hardware: Hardware) -> Recipe | None:
    """The Recipe as the form has it now; None while it is incomplete."""
    recipe = recipe_form(session.recipe(), hardware, session.recipe_revision())
    if recipe is not None:
        session.set_recipe(recipe)
    return recipe


def _footprint(recipe: Recipe | None) -> Footprint | None:
    """What it needs, drawn; None with the reason when it cannot be known."""
    st.markdown("##### Will it fit?", anchors=False)
    if recipe is None:
        st.caption("Known as soon as a model is chosen.")
        return None
    with frame.errors_shown():
        footprint = workbench.get_workbench().footprint(recipe, current_token())
        draw_footprint(footprint)
        return footprint
    return None


def _more(recipe: Recipe | None, footprint: Footprint | None, hardware: Hardware) -> None:
    schemes, document, upload, shelf = st.tabs(
        ["The same model in other schemes", "Recipe as JSON", "Use a Recipe file", "Models on this machine"]
    )
    with schemes:
        if recipe is None or footprint is None:
            st.caption("Known as soon as a model is chosen.")
        else:
            draw_scheme_table(_scheme_rows(recipe, hardware))
    with document:
        recipe_json(recipe or session.recipe())
    with upload:
        recipe_upload()
    with shelf:
        model_shelf()


def _scheme_rows(recipe: Recipe, hardware: Hardware) -> list[SchemeRow]:
    plain = recipe.replace({"quantization": {}})
    reasons = dict(options_of(plain, hardware, "quantization.scheme", list(SCHEMES)).refused)
    return [_scheme_row(recipe, plain, name, reasons.get(name, "")) for name in SCHEMES]


def _scheme_row(recipe: Recipe, plain: Recipe, name: SchemeName, reason: str) -> SchemeRow:
    chosen = recipe.quantization.scheme == name
    asked = recipe if chosen else plain.replace({"quantization.scheme": name})
    try:
        footprint = workbench.get_workbench().footprint(asked, current_token())
    except McpError as error:
        return SchemeRow(name, chosen, None, reason or error.message)
    return SchemeRow(name, chosen, footprint, reason)


draw()
