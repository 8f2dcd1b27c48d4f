"""Which layers lose most by the chosen scheme, and a mixed Recipe that keeps them dense, in one click.

This file does not know how sensitivity is measured, or which groups a budget keeps (``decision/mixed_recipe.py``).
"""

from __future__ import annotations

import re

import streamlit as st

from mcp_core.decision.mixed_recipe import Mixed, keep_within_kl, keep_within_memory
from mcp_core.errors import RecipeError
from mcp_core.evaluation.sensitivity_values import Grouping, Sensitivity, require_separable
from mcp_core.recipe import Recipe
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.hub_token import current_token
from pages._ui.job_panel import ACTIVE, job_panel
from pages._ui.quantization_charts import groups_figure
from pages._ui.recipe_options import label_of

__all__ = ["sensitivity_panel"]

_BY: dict[str, Grouping] = {"Decoder layers": "layer", "Kinds of module": "module"}
_TOKENS = {512: "512 tokens", 1024: "1,024 tokens", 2048: "2,048 tokens"}
_KL, _MEMORY = "Lose less", "Spend memory"


def sensitivity_panel(recipe: Recipe) -> None:
    """What it is, a way to start it, its progress, and what came out for this model and scheme."""
    st.markdown("##### Sensitive layers", anchors=False)
    st.caption(
        "Quantizes one group of layers at a time, everything else dense, and measures the KL of each against the "
        "dense model. The worst groups can then be kept dense: a mixed Recipe."
    )
    job = workbench.get_workbench().studies.sensitivity(recipe)
    if job is not None and job.state in ACTIVE:
        job_panel(job)
        return
    found = Sensitivity.model_validate(job.result) if job is not None and job.result is not None else None
    _start_form(recipe, found)
    if found is not None:
        _result(recipe, found)
    elif job is not None:
        job_panel(job)


def _start_form(recipe: Recipe, found: Sensitivity | None) -> None:
    """At first it says how what is shown below was found."""
    reason = _not_startable(recipe)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        by = st.segmented_control("Groups", list(_BY), default=_way_of(found), required=True, key="sensitivity-by")
        tokens = st.selectbox(
            "Text",
            list(_TOKENS),
            format_func=_TOKENS.__getitem__,
            help=_TEXT_HELP,
            width=160,
            key="sensitivity-tokens",
        )
        pressed = st.button(
            "Find the sensitive layers",
            icon=":material/troubleshoot:",
            disabled=reason is not None,
            key="sensitivity-start",
        )
    if reason is not None:
        st.caption(f":material/info: {reason}")
    if pressed:
        with frame.errors_shown():
            workbench.get_workbench().studies.start_sensitivity(recipe, _BY[str(by)], tokens, current_token())
            st.rerun()


def _way_of(found: Sensitivity | None) -> str:
    return next((title for title, by in _BY.items() if found is not None and by == found.by), "Decoder layers")


_TEXT_HELP = "Tokens of the built-in evaluation set, which no scheme is calibrated on. More is slower and steadier."


def _not_startable(recipe: Recipe) -> str | None:
    try:
        require_separable(recipe)
    except RecipeError as error:
        field, _, cause = error.message.partition(": ")
        return f"{label_of(field)}: {cause} {error.hint}"
    if recipe.model.source == "shape":
        return "Random weights: no layer matters more than another. Choose a trained model."
    conflicts = recipe.conflicts(workbench.get_workbench().hardware())
    return f"{label_of(conflicts[0].field)}: {conflicts[0].reason} {conflicts[0].fix}" if conflicts else None


def _result(recipe: Recipe, found: Sensitivity) -> None:
    """The answer first: the worst groups; then the mixed Recipe, and the chart in the model's own order."""
    worst = ", ".join(f"**{group.name}** ({fmt.number(group.kl_mean)})" for group in found.groups[:3])
    st.markdown(
        f"Most sensitive: {worst}, mean KL in nats. Everything quantized: {fmt.number(found.together.kl_mean)}.",
        help="Mean KL(dense || quantized) of the next-token distributions, nats; 0 is no loss.",
    )
    mixed = _mixed_form(found)
    in_order = sorted(found.groups, key=lambda group: _natural(group.name))
    kept = {group.pattern for group in mixed.kept}
    st.plotly_chart(
        groups_figure(
            [_short(group.name) for group in in_order],
            [group.kl_mean for group in in_order],
            [group.pattern in kept for group in in_order],
        ),
        config={"displayModeBar": False},
        key="sensitivity-figure",
        alt="Mean KL of each group of layers when it alone is quantized.",
    )
    _use_mixed(recipe, mixed)
    _small_print(found)


def _mixed_form(found: Sensitivity) -> Mixed:
    way = st.segmented_control("Mixed Recipe", [_KL, _MEMORY], default=_KL, required=True, key="mixed-way")
    if way == _KL:
        share = st.slider("KL that may remain", 0, 100, 50, 5, format="%d %%", help=_KL_HELP, key="mixed-kl")
        return keep_within_kl(found, share / 100)
    share = st.slider("Weights may grow by", 0, 100, 20, 5, format="%d %%", help=_MEMORY_HELP, key="mixed-memory")
    return keep_within_memory(found, share / 100)


_KL_HELP = "Of the sum over all groups. The sum estimates the whole: KL of small disturbances adds up roughly."
_MEMORY_HELP = "Of the weights with every group quantized. Groups that lose most for their bytes are kept first."


def _use_mixed(recipe: Recipe, mixed: Mixed) -> None:
    if not mixed.kept:
        st.caption("With this budget every group stays quantized.")
        return
    wanted = mixed.recipe(recipe)
    st.markdown(
        f"Keeps {fmt.count(len(mixed.kept), 'group')} dense: weights **{fmt.size(mixed.weights_bytes)}** "
        f"(+{fmt.size(mixed.added_bytes)}), about **{1 - mixed.remaining:.0%}** less KL (estimated)."
    )
    used = wanted == recipe
    if st.button(
        "In use" if used else "Use the mixed Recipe",
        type="primary",
        icon=":material/check:" if used else ":material/layers:",
        disabled=used,
        key="use-mixed",
    ):
        session.use_recipe(wanted)
        st.rerun()
    if used:
        st.caption("Measure its fidelity above to see what it really loses.")


def _small_print(found: Sensitivity) -> None:
    notes = [f"{found.tokens:,} tokens of the {found.text_name}, {fmt.duration(found.seconds)}"]
    if found.unpacked:
        notes.append(f"left dense by the scheme: {', '.join(found.unpacked)}")
    if found.random_weights:
        notes.append("random weights: the order says nothing about a trained model")
    st.caption(frame.plain(". ".join(fmt.sentence(note) for note in notes) + "."))


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 11."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _short(name: str) -> str:
    """The layer's number; a kind's name as it is."""
    layer = re.fullmatch(r".*?(\d+)", name)
    return layer.group(1) if layer else name
