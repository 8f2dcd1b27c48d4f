"""Start a fidelity measurement: on which text, of the current Recipe or of a running server.

This file does not know how fidelity is measured or shown.
"""

from __future__ import annotations

import streamlit as st

from mcp_core.evaluation.fidelity_plan import original_named
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.views import JobView
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.calibration_form import add_text
from pages._ui.hub_token import current_token
from pages._ui.job_panel import ACTIVE

__all__ = ["fidelity_form", "server_form", "text_choice"]

_BUILTIN = "builtin"
_BUILTIN_TITLE = "Built-in: six kinds of text (25 documents)"


def fidelity_form(recipe: Recipe, jobs: tuple[JobView, ...]) -> None:
    """The Recipe in a line, the text, Start or why not."""
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown(f"**{fmt.model_name(recipe)}** · {fmt.recipe_line(recipe)}")
            frame.link("recipe", "Change the Recipe", icon=":material/tune:")
        text_sha256 = text_choice("fidelity")
        original = _original(recipe)
        reason = _not_startable(recipe, jobs)
        if st.button(
            "Measure fidelity",
            type="primary",
            icon=":material/compare:",
            disabled=reason is not None,
            key="start-fidelity",
            help="Loads the checkpoint in its own dtype and this Recipe, and compares their predictions token by "
            "token. Another engine is judged through its server. What was measured before is shown at once.",
        ):
            with frame.errors_shown():
                against = {} if original is None else {"original": original}
                workbench.get_workbench().studies.start_fidelity(recipe, text_sha256, current_token(), **against)
                st.query_params.pop("fidelity", None)
                st.rerun()
        if reason is not None:
            st.caption(f":material/info: {reason}")


def _original(recipe: Recipe) -> ModelRef | None:
    """What a checkpoint is compared with that does not hold its own dense weights."""
    if recipe.model.source not in ("folder", "hub", "gguf"):
        return None
    name = st.text_input(
        "Original checkpoint (optional)",
        placeholder="bundled, a folder, a .gguf file or a Hub id",
        max_chars=1000,
        key="fidelity-original",
        help="For a checkpoint that comes quantized (GPTQ, AWQ, compressed-tensors, GGUF, one saved here): the "
        "model that it was made of. Empty compares with the checkpoint's own dense weights.",
    )
    return original_named(name.strip()) if name and name.strip() else None


def text_choice(key: str) -> str | None:
    """The built-in set (None) or one of the user's texts, with a way to add one."""
    titles = {_BUILTIN: _BUILTIN_TITLE}
    with frame.errors_shown():
        stored = workbench.get_workbench().studies.texts()
        titles |= {each.sha256: f"{each.name} · {fmt.count(each.documents, 'document')}" for each in stored}
    session.apply_choice(f"{key}-text")
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Text",
        tuple(titles),
        format_func=lambda each: titles[each],
        key=f"{key}-text",
        help="Best is text like what your users send; not the text that a static scheme was calibrated on.",
    )
    with right.popover("Add a text", icon=":material/add:", width="stretch"):
        added = add_text(f"{key}-own")
        if added is not None:
            session.choose_next(f"{key}-text", added)
            st.rerun()
    return None if chosen == _BUILTIN else chosen


def server_form(recipe: Recipe, jobs: tuple[JobView, ...]) -> None:
    """A running server by its URL; the reference is a worker, or another URL. The built-in set is scored."""
    st.markdown(
        "Any OpenAI-compatible server that runs this Recipe's model and gives log-probabilities of a prompt "
        "(MCP's own workers and vLLM do), or one of llama.cpp, which is asked token by token: minutes."
    )
    with st.form("server", border=False):
        url = st.text_input("Server URL", placeholder="http://127.0.0.1:8000", key="server-url")
        reference = st.text_input(
            "Reference URL (optional)",
            placeholder="empty: MCP loads the checkpoint in its own dtype",
            key="server-reference-url",
        )
        busy = any(job.verb == "endpoint-fidelity" and job.state in ACTIVE for job in jobs)
        asked = st.form_submit_button(
            "Measure this server", disabled=busy, icon=":material/lan:", key="start-server"
        )
    if not asked:
        return
    with frame.errors_shown():
        studies = workbench.get_workbench().studies
        studies.start_endpoint_fidelity(recipe, url.strip(), reference.strip() or None)
        st.rerun()


def _not_startable(recipe: Recipe, jobs: tuple[JobView, ...]) -> str | None:
    if recipe.model.source == "shape":
        return "This model has random weights: what it says means nothing, and neither does its change."
    if any(job.verb == "fidelity" and job.state in ACTIVE for job in jobs):
        return "A fidelity measurement is queued or runs. Wait for it or cancel it."
    return None
