"""Recipe page: choose a model and how it is served, see what it needs and costs, load it."""

from __future__ import annotations

from dataclasses import dataclass, field

import streamlit as st

from mcp_core.decision.effects import Effects, baseline_of
from mcp_core.errors import McpError
from mcp_core.hardware import Hardware
from mcp_core.models.footprint import Footprint
from mcp_core.recipe import ModelRef, Recipe, SchemeName
from mcp_core.results import Run, StoredFidelity
from mcp_core.schemes import SCHEMES
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.before_after import before_after, measured_words
from pages._ui.calibration_panel import calibration_panel
from pages._ui.effects_panel import effects_panel
from pages._ui.engine_notes import draw_not_carried
from pages._ui.footprint_chart import SchemeRow, draw_footprint, draw_scheme_table
from pages._ui.hub_token import current_token
from pages._ui.load_panel import load_panel
from pages._ui.model_shelf import model_shelf
from pages._ui.planner_panel import draw_planner
from pages._ui.recipe_adoption import draw_adopted
from pages._ui.recipe_document import preset_menu, recipe_json, recipe_upload
from pages._ui.recipe_form import recipe_form
from pages._ui.recipe_options import options_of
from pages._ui.save_panel import save_panel
from pages._ui.sensitivity_panel import sensitivity_panel

frame.require("recipe")


# Stored Runs that are looked through for figures of the chosen model, newest first.
_RUNS = 300


def draw() -> None:
    """Form on the left, with what it costs and saves; what it needs and loading on the right; tools below."""
    hardware = workbench.get_workbench().hardware()
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title("Recipe")
        preset_menu()
    adopted = st.container()
    stored = _Stored.read()
    form, result = st.columns([6, 5], gap="medium")
    with form:
        recipe = _edited(hardware, stored)
    with adopted:
        draw_adopted(recipe, hardware)
    with result:
        with st.container(border=True):
            footprint = _footprint(recipe)
        load_panel(recipe, footprint, hardware)
    if recipe is not None:
        with form:
            draw_not_carried(recipe)
        with form, st.container(border=True):
            before_after(recipe, footprint, stored.effects(recipe, hardware))
    _tools(recipe, footprint, hardware, stored)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What was measured so far; what that says of a model on a device is worked out once."""

    runs: tuple[Run, ...] = ()
    fidelities: tuple[StoredFidelity, ...] = ()
    known: dict[tuple[ModelRef, str, str], Effects] = field(default_factory=dict)

    @classmethod
    def read(cls) -> _Stored:
        """Nothing, with the reason shown, when the store cannot be read."""
        with frame.errors_shown():
            held = workbench.get_workbench()
            return cls(held.runs(limit=_RUNS), held.studies.fidelities(limit=_RUNS))
        return cls()

    def effects(self, recipe: Recipe, hardware: Hardware) -> Effects:
        key = (recipe.model, recipe.device, recipe.engine)
        if key not in self.known:
            self.known[key] = Effects(recipe, hardware, self.runs, self.fidelities)
        return self.known[key]


def _edited(hardware: Hardware, stored: _Stored) -> Recipe | None:
    """The Recipe as the form has it now; None while it is incomplete."""
    before = session.recipe()
    recipe = recipe_form(before, hardware, session.recipe_revision(), _measured(before, hardware, stored), _came)
    if recipe is not None:
        session.set_recipe(recipe)
    return recipe


def _came(recipe: Recipe) -> str:
    """How the checkpoint's weights are stored where it came quantized; empty where it did not, or is not known."""
    try:
        resolved = workbench.get_workbench().resolve(recipe.model, current_token())
    except McpError:  # the footprint says why
        return ""
    machine = workbench.get_workbench().hardware()
    device = machine.device(recipe.device)
    return resolved.comes_as(recipe, device, machine) if device else ""


def _measured(recipe: Recipe, hardware: Hardware, stored: _Stored) -> dict[str, str]:
    """What was measured with each scheme, its options at their defaults, and otherwise this Recipe."""
    effects, plain = stored.effects(recipe, hardware), baseline_of(recipe)
    words = {
        name: measured_words(effects.of(_with_scheme(recipe, plain, name))) for name in SCHEMES if name != "none"
    }
    return {name: each for name, each in words.items() if each}


def _with_scheme(recipe: Recipe, plain: Recipe, name: SchemeName) -> Recipe:
    return recipe if recipe.quantization.scheme == name else plain.replace({"quantization.scheme": name})


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


def _tools(recipe: Recipe | None, footprint: Footprint | None, hardware: Hardware, stored: _Stored) -> None:
    compare, planner, layers, save, document, shelf = st.tabs(
        ["Compare schemes", "Planner", "Layers", "Save quantized", "Recipe files", "Models on this machine"]
    )
    if recipe is None or footprint is None:
        for tab in (compare, planner, layers, save):
            tab.caption("Known as soon as a model is chosen.")
    else:
        with compare:
            effects_panel(recipe, stored.effects(recipe, hardware))
            st.markdown("##### The same model in other schemes", anchors=False)
            draw_scheme_table(_scheme_rows(recipe, hardware))
        with planner:
            draw_planner(recipe, current_token())
        with layers:
            calibration_panel(recipe)
            sensitivity_panel(recipe)
        with save:
            save_panel(recipe, hardware)
    with document:
        recipe_json(recipe or session.recipe())
        recipe_upload()
    with shelf:
        model_shelf()


def _scheme_rows(recipe: Recipe, hardware: Hardware) -> list[SchemeRow]:
    plain = baseline_of(recipe)
    reasons = dict(options_of(plain, hardware, "quantization.scheme", list(SCHEMES)).refused)
    has_file = recipe.model.source in ("bundled", "gguf")
    applicable = [name for name, scheme in SCHEMES.items() if has_file or scheme.engine != "llama.cpp"]
    return [_scheme_row(recipe, plain, name, reasons.get(name, "")) for name in applicable]


def _scheme_row(recipe: Recipe, plain: Recipe, name: SchemeName, reason: str) -> SchemeRow:
    asked = _with_scheme(recipe, plain, name)
    chosen, title = recipe.quantization.scheme == name, fmt.scheme_of(asked)
    reason = "" if chosen and recipe.engine == "llama.cpp" else reason  # it was asked of transformers
    try:
        footprint = workbench.get_workbench().footprint(asked, current_token())
    except McpError as error:
        return SchemeRow(name, title, chosen, None, reason or error.message)
    return SchemeRow(name, title, chosen, footprint, reason)


draw()
