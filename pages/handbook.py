"""Handbook page: the article's best practices for this Recipe, and its advice tried once on this machine."""

from __future__ import annotations

import streamlit as st

from mcp_core.decision.advisor import advise
from mcp_core.evaluation.experiment_values import ExperimentResult
from mcp_core.evaluation.experiments import EXPERIMENTS
from mcp_core.recipe import Recipe
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.advisor_panel import advisor_panel
from pages._ui.experiment_card import experiment_card

frame.require("handbook")


# Stored Runs among which a practice may have been measured.
_RUNS = 200


def draw() -> None:
    """The checklist; then a chapter after the other, a card for each piece of advice."""
    st.title("Handbook")
    recipe, wb = session.recipe(), workbench.get_workbench()
    results = wb.studies.experiments()
    st.header("Best practices for this Recipe")
    st.caption(
        f"The article's five groups, asked of your Recipe ({frame.plain(fmt.recipe_line(recipe))}) here. "
        "Expected effects are predicted; measured ones come from your Runs and from the trials below."
    )
    _advise(recipe, results)
    st.header("Tried on this machine")
    st.caption(
        "What the article advises, tried on this machine: the usual way and the other in turn, in one process. "
        f"A new trial uses the model, device and threads of your Recipe: {frame.plain(_of(recipe))}."
    )
    jobs = wb.studies.all("experiment")
    for chapter in dict.fromkeys(each.chapter for each in EXPERIMENTS.values()):
        st.markdown(f"##### {chapter}", anchors=False)
        for each in EXPERIMENTS.values():
            if each.chapter == chapter:
                newest = next((job for job in jobs if each.is_title(job.title)), None)
                experiment_card(each, recipe, results.get(each.name), newest)


def _advise(recipe: Recipe, results: dict[str, ExperimentResult]) -> None:
    wb = workbench.get_workbench()
    with frame.errors_shown():
        advisor_panel(advise(recipe, wb.hardware(), wb.runs(limit=_RUNS), results))


def _of(recipe: Recipe) -> str:
    threads = "default threads" if recipe.threads is None else fmt.count(recipe.threads, "thread")
    device = workbench.get_workbench().hardware().device(recipe.device)
    return f"{fmt.model_name(recipe)} on {device.id if device else recipe.device}, {threads}"


draw()
