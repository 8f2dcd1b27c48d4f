"""Calibration as a tool: add a text, run it through the dense model, see the ranges and the search for alpha.

This file does not know how ranges are found (``mcp_core/memory/calibration.py``).
"""

from __future__ import annotations

import streamlit as st

from mcp_core.calibration_report import CalibrationReport, LayerRange
from mcp_core.conflicts import options_read_by
from mcp_core.recipe import Recipe
from mcp_core.results import Calibrated
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.calibration_form import add_text
from pages._ui.hub_token import current_token
from pages._ui.job_panel import ACTIVE, job_panel
from pages._ui.quantization_charts import alpha_figure, ranges_figure

__all__ = ["calibration_panel"]

# A layer whose largest channel is so many times its median one loses its small channels in one scale for all.
_OUTLIERS = 20.0


def calibration_panel(recipe: Recipe) -> None:
    """For a static scheme: its text and what calibrating found; nothing for others, which need none."""
    if "calibration" not in options_read_by(recipe.quantization.scheme):
        return
    st.markdown("##### Calibration", anchors=False)
    job = workbench.get_workbench().studies.latest("calibrate", recipe)
    if job is not None and job.state in ACTIVE:
        job_panel(job)
        return
    _start(recipe)
    if job is not None and job.result is None:
        job_panel(job)
    elif job is not None and job.result is not None:
        _report(CalibrationReport.model_validate(job.result))


def _start(recipe: Recipe) -> None:
    st.caption(
        "Runs the calibration text through the dense model and keeps the range of each layer's input for the next "
        "load. Loading does it by itself; here it can be looked at first."
    )
    if st.button("Calibrate", icon=":material/tune:", key="calibrate"):
        with frame.errors_shown():
            workbench.get_workbench().studies.start_calibration(recipe, current_token())
            st.rerun()
    with st.expander("Use your own text", icon=":material/upload_file:"):
        added = add_text("calibration-text")
        if added is not None:
            session.use_recipe(recipe.replace({"quantization.calibration.text": added}))
            st.rerun()


def _report(report: CalibrationReport) -> None:
    """The answer first: alpha, or which layers have outliers; then both pictures."""
    calibrated, layers = report.calibrated, report.layers
    if calibrated.alpha is not None:
        _alpha(calibrated)
    wild = [layer for layer in layers if layer.outlier_ratio is not None and layer.outlier_ratio >= _OUTLIERS]
    if wild:
        worst = max(wild, key=lambda layer: layer.outlier_ratio or 0.0)
        st.markdown(
            f"Outliers in {len(wild)} of {fmt.count(len(layers), 'layer')}, most in **{worst.name}**: its largest "
            f"channel is {fmt.number(worst.outlier_ratio)} times its median one.",
            help="One scale for the whole input leaves few of its 256 steps to the other channels.",
        )
    st.plotly_chart(
        ranges_figure([_point(layer) for layer in layers]),
        config={"displayModeBar": False},
        key="ranges-figure",
        alt="Largest input magnitude of each layer, by kind of module.",
    )
    st.caption(frame.plain(_small_print(calibrated)))


def _alpha(calibrated: Calibrated) -> None:
    if not calibrated.alpha_search:
        st.markdown(f"Alpha **{calibrated.alpha:g}**, as the Recipe says.")
        return
    best = min(calibrated.alpha_search, key=lambda each: each.kl)
    st.markdown(
        f"Alpha **{calibrated.alpha:g}** loses least of {len(calibrated.alpha_search)} tried: "
        f"KL {fmt.number(best.kl)} nats on passages that were held out.",
        help="SmoothQuant's alpha: how much of the outliers moves from activations into weights.",
    )
    st.plotly_chart(
        alpha_figure([(each.alpha, each.kl) for each in calibrated.alpha_search], calibrated.alpha),
        config={"displayModeBar": False},
        key="alpha-figure",
        alt="KL of each alpha that was tried.",
    )


def _point(layer: LayerRange) -> tuple[str, float]:
    return layer.name, layer.absmax


def _small_print(calibrated: Calibrated) -> str:
    how = "kept from an earlier calibration" if calibrated.reused else fmt.duration(calibrated.seconds)
    amount = f"{fmt.count(calibrated.samples, 'passage')} of {calibrated.tokens:,} tokens"
    note = " Random weights saw random tokens: these ranges mean nothing." if calibrated.random_tokens else ""
    return f"{amount} of {calibrated.text}, {how}.{note}"
