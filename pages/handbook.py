"""Handbook page: the article's advice, each tried once on this machine, and what it was worth."""

from __future__ import annotations

import streamlit as st

from mcp_core.evaluation.experiments import EXPERIMENTS
from mcp_core.recipe import Recipe
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.experiment_card import experiment_card

frame.require("handbook")


def draw() -> None:
    """A chapter after the other, a card for each piece of advice."""
    st.title("Handbook")
    recipe, wb = session.recipe(), workbench.get_workbench()
    st.caption(
        "What the article advises, tried on this machine: the usual way and the other in turn, in one process. "
        f"A new trial uses the model, device and threads of your Recipe: {frame.plain(_of(recipe))}."
    )
    results, jobs = wb.studies.experiments(), wb.studies.all("experiment")
    for chapter in dict.fromkeys(each.chapter for each in EXPERIMENTS.values()):
        st.markdown(f"##### {chapter}", anchors=False)
        for each in EXPERIMENTS.values():
            if each.chapter == chapter:
                newest = next((job for job in jobs if each.is_title(job.title)), None)
                experiment_card(each, recipe, results.get(each.name), newest)


def _of(recipe: Recipe) -> str:
    threads = "default threads" if recipe.threads is None else fmt.count(recipe.threads, "thread")
    device = workbench.get_workbench().hardware().device(recipe.device)
    return f"{fmt.model_name(recipe)} on {device.id if device else recipe.device}, {threads}"


draw()
