"""Quality page: how much a Recipe changes what the model says."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from mcp_core.recipe import Recipe
from mcp_core.results import Fidelity, StoredFidelity
from mcp_core.views import JobView
from pages._ui import frame, links, session, workbench
from pages._ui.fidelity_form import fidelity_form, server_form
from pages._ui.fidelity_result import downloads, fidelity_result
from pages._ui.fidelity_table import fidelity_table
from pages._ui.job_panel import ACTIVE, job_panel
from pages._ui.reply_checks import drift_check, task_check
from pages._ui.token_map import token_map

frame.require("quality")

_JOBS = ("fidelity", "endpoint-fidelity")


def draw() -> None:
    """What to measure, what runs, the answer, its token map, all answers so far, further checks."""
    st.title("Quality")
    st.caption("How much does this Recipe change what the model says?")
    recipe = session.recipe()
    jobs = tuple(job for job in workbench.get_workbench().jobs() if job.verb in _JOBS)
    fidelity_form(recipe, jobs)
    for job in jobs:
        if job.state in ACTIVE:
            job_panel(job)
    _how_the_last_ended(jobs)
    stored = _stored()
    chosen = _chosen(stored, recipe, jobs)
    if chosen is not None:
        _answer(chosen, recipe)
    elif recipe.model.source != "shape" and not any(job.state in ACTIVE for job in jobs):
        _nothing_yet()
    clicked = fidelity_table(stored)
    if clicked is not None and clicked != st.query_params.get("fidelity"):
        st.query_params["fidelity"] = clicked
        st.rerun()
    _further(recipe, jobs)


def _answer(chosen: StoredFidelity, recipe: Recipe) -> None:
    with st.container(border=True):
        if not _is_of(chosen, recipe):
            st.caption(":material/info: Not of the Recipe above, but of this one:")
        fidelity_result(chosen)
        downloads(chosen)
    if chosen.fidelity.status == "measured":
        _token_map(chosen.fidelity)


def _token_map(fidelity: Fidelity) -> None:
    key = fidelity.key or ""
    with frame.errors_shown(), st.container(border=True):
        kept = workbench.get_workbench().studies.token_map(key)
        if kept is None or not kept.documents:
            server = "A server gives no token map: it names too few alternatives."
            st.caption(server if fidelity.path == "endpoint" else "Its token map is not on this machine.")
        else:
            token_map(kept, key[:12])


def _nothing_yet() -> None:
    st.info(
        "Nothing is measured for this Recipe yet. Press Measure fidelity: the bundled model takes some minutes on "
        "a CPU, and you can leave this page meanwhile.",
        icon=":material/compare:",
    )


def _further(recipe: Recipe, jobs: tuple[JobView, ...]) -> None:
    """Details on demand."""
    with st.expander("A running server", icon=":material/lan:"):
        server_form(recipe, jobs)
    with st.expander("Length of replies", icon=":material/notes:"):
        drift_check(recipe)
    with st.expander("Small task check", icon=":material/quiz:"):
        task_check(recipe)


def _stored() -> tuple[StoredFidelity, ...]:
    """Newest first; none, with the reason, when the store cannot be read."""
    with frame.errors_shown():
        return workbench.get_workbench().studies.fidelities()
    return ()


def _chosen(stored: Sequence[StoredFidelity], recipe: Recipe, jobs: Sequence[JobView]) -> StoredFidelity | None:
    """The one that the link names, else what the newest job found, else the newest of this Recipe."""
    with frame.errors_shown():
        find, gone = workbench.get_workbench().studies.fidelity, "The fidelity {} is not on this machine."
        named = links.asked("fidelity", find, gone, "What is known of the Recipe above is shown instead.")
        if named is not None:
            return named
    found = _found_by(jobs)
    of_this = [each for each in stored if _is_of(each, recipe)]
    return next((each for each in stored if each.fidelity.key == found), None) or next(iter(of_this), None)


def _found_by(jobs: Sequence[JobView]) -> str | None:
    """Key of what the newest ended job answered."""
    newest = max(jobs, key=lambda job: job.created, default=None)
    if newest is None or newest.state != "done" or not newest.result:
        return None
    return str(newest.result["fidelity"].get("key"))


def _is_of(stored: StoredFidelity, recipe: Recipe) -> bool:
    return stored.recipe.quantization == recipe.quantization and _alike(stored, recipe)


def _alike(stored: StoredFidelity, recipe: Recipe) -> bool:
    """What was judged has its model, device and threads filled in; a Recipe that is being edited may not."""
    judged = stored.recipe
    same_model = (judged.model.source, judged.model.id) == (recipe.model.source, recipe.model.id)
    return same_model and (judged.engine, judged.dtype, judged.attention, judged.kv.kind) == (
        recipe.engine,
        recipe.dtype,
        recipe.attention,
        recipe.kv.kind,
    )


def _how_the_last_ended(jobs: Sequence[JobView]) -> None:
    newest = max(jobs, key=lambda job: job.created, default=None)
    if newest is not None and newest.state not in (*ACTIVE, "done"):
        job_panel(newest)


draw()
