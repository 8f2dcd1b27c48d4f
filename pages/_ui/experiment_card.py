"""One piece of the article's advice as a card: what it says, what it was worth here, one button.

This file does not know how an experiment is run or what its figures mean (``evaluation/experiments.py``).
"""

from __future__ import annotations

import streamlit as st

from mcp_core.evaluation.experiment_values import Agreement, Comparison, ExperimentResult
from mcp_core.evaluation.experiments import Experiment, verdict, why_not
from mcp_core.recipe import Recipe
from mcp_core.views import JobView
from pages._ui import format as fmt
from pages._ui import frame, workbench
from pages._ui.hub_token import current_token
from pages._ui.job_panel import ACTIVE, job_panel

__all__ = ["experiment_card"]

_RATIO_HELP = (
    "Median of the pairs' time ratios: the other way's time divided by the usual way's, measured in turn in one "
    "process. In brackets the interval that holds the true median with the chance given below."
)
_MEMORY_HELP = Comparison.model_fields["baseline_peak_bytes"].description
_TIME_HELP = "Median time of this way."
_TOP1_HELP = Agreement.model_fields["top1"].description
_KL_HELP = Agreement.model_fields["kl_mean"].description


def experiment_card(what: Experiment, recipe: Recipe, result: ExperimentResult | None, job: JobView | None) -> None:
    """``result`` is the latest on this machine, ``job`` the newest of this experiment."""
    shown = result is not None or (job is not None and (job.state in ACTIVE or _ended_badly_since(job, result)))
    with st.container(border=True):
        words, figures = st.columns([2, 3], gap="medium") if shown else (st.container(), st.container())
        with words:
            st.markdown(f"**{what.title}**")
            st.caption(f"The article: {what.advice}")
            st.caption(what.expectation)
            if result is not None:
                st.markdown(verdict(result))
            if job is None or job.state not in ACTIVE:
                _button(what, recipe, again=result is not None)
        with figures:
            if job is not None and (job.state in ACTIVE or _ended_badly_since(job, result)):
                job_panel(job)
            if result is not None:
                _figures(result)


def _figures(result: ExperimentResult) -> None:
    st.dataframe(
        [row for each in result.comparisons for row in _rows(each)],
        column_config={
            "Time": st.column_config.TextColumn(help=_TIME_HELP),
            "Time ratio": st.column_config.TextColumn(help=_RATIO_HELP),
            "Memory": st.column_config.TextColumn(help=_MEMORY_HELP),
        },
        hide_index=True,
        alt="Time and memory of each piece of work, both ways.",
    )
    _agreement(result)
    if result.notes:
        st.caption(" ".join(result.notes))
    st.caption(_where_and_when(result))


def _rows(each: Comparison) -> tuple[dict[str, str], dict[str, str]]:
    ratio = each.ratio
    return (
        {
            "Work": each.what,
            "Way": each.baseline,
            "Time": fmt.ms(each.baseline_ms),
            "Time ratio": "1",
            "Memory": fmt.size(each.baseline_peak_bytes),
        },
        {
            "Work": "",
            "Way": each.changed,
            "Time": fmt.ms(each.changed_ms),
            "Time ratio": f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})",
            "Memory": fmt.size(each.changed_peak_bytes),
        },
    )


def _where_and_when(result: ExperimentResult) -> str:
    pairs = {
        f"{fmt.count(each.repeats, 'pair')} (interval of {each.ratio.coverage:.0%})" for each in result.comparisons
    }
    return (
        f"{result.model} in {result.dtype} on {result.device_name}, {fmt.count(result.threads, 'thread')}, "
        f"{' and '.join(sorted(pairs))}, {fmt.ago(result.created)}"
    )


def _agreement(result: ExperimentResult) -> None:
    found = result.agreement
    if result.random_weights:
        st.caption("Random weights: how far answers differ would mean nothing.")
    if found is None or found.top1 is None or found.kl_mean is None:
        return
    with st.container(horizontal=True):
        st.metric("Top-1 agreement", f"{found.top1:.1%}", help=_TOP1_HELP, width="content")
        st.metric("Mean KL", f"{fmt.number(found.kl_mean)} nats", help=_KL_HELP, width="content")
        st.metric("Judged on", fmt.count(found.tokens, "token"), help="Positions scored.", width="content")


def _button(what: Experiment, recipe: Recipe, *, again: bool) -> None:
    reason = why_not(what.name, recipe, workbench.get_workbench().hardware())
    if reason is not None:
        st.caption(f":material/block: Cannot be tried here: {frame.plain(reason)}")
        return
    if st.button("Try again" if again else "Try it", key=f"try-{what.name}", icon=":material/science:"):
        with frame.errors_shown():
            workbench.get_workbench().studies.start_experiment(what.name, recipe, current_token())
            st.rerun()


def _ended_badly_since(job: JobView, result: ExperimentResult | None) -> bool:
    return job.state != "done" and (result is None or job.created > result.created)
