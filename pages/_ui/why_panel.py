"""A Run's verdict: the sentence, its evidence, what would help, what else was found; its place below the ceilings.

This file does not know how a cause is found (``mcp_core/evaluation/findings.py``) or how the Run was chosen.
"""

from __future__ import annotations

import streamlit as st

from mcp_core.evaluation.roofline import Point
from mcp_core.evaluation.verdict_values import CAUSES, Change, Finding, Verdict
from mcp_core.evaluation.why import Explanation
from pages._ui import format as fmt
from pages._ui import frame
from pages._ui.recipe_adoption import adopt_button
from pages._ui.recipe_options import label_of

__all__ = ["draw_figures", "draw_others", "draw_verdict"]

_CONFIDENCE = {"high": "green", "medium": "blue", "low": "orange"}
_CONFIDENCE_HELP = (
    "High: a profile split the steps and the device's ceilings are known. Medium: one of both. Low: an estimate "
    "from the model's sizes."
)
_MBU_HELP = "Bytes of weights, keys and values that a step reads / its time / this device's measured bandwidth."
_MFU_HELP = (
    "FLOPs of the products (2 a weight and token) and of attention / time / this device's measured FLOP rate."
)
_FLOOR_HELP = "The larger of bytes / bandwidth and FLOPs / FLOP rate: no kernel is faster on this device."


def draw_verdict(found: Explanation) -> None:
    """The cause in one sentence first, then the figures behind it and the change that is most likely to help."""
    verdict = found.verdict
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.header(verdict.title, help=CAUSES[verdict.cause][1], width="content")
            words = f"{verdict.finding.confidence} confidence"
            st.badge(words, color=_CONFIDENCE[verdict.finding.confidence], help=_CONFIDENCE_HELP)  # type: ignore[arg-type]
        st.markdown(frame.plain(verdict.finding.sentence))
        shown = verdict.finding if verdict.cause != "undecided" else next(iter(verdict.others), verdict.finding)
        _evidence(shown)
        _what_would_help(verdict, found.case.run.id)
        for note in found.notes:
            st.caption(f":material/info: {frame.plain(note)}")


def _evidence(finding: Finding) -> None:
    if not finding.evidence:
        return
    rows = [
        {"Evidence": each.what, "Figure": each.figure or "", "Limit": each.limit or "", "From": each.source or ""}
        for each in finding.evidence
    ]
    known = [name for name in rows[0] if any(row[name] for row in rows)]
    st.table([{name: row[name] for name in known} for row in rows], border="horizontal", hide_index=True)


def _what_would_help(verdict: Verdict, run_id: str) -> None:
    if verdict.change is not None:
        _change(verdict.change, run_id)
    if verdict.advice:
        st.info(frame.plain(verdict.advice), icon=":material/lightbulb:")
    if verdict.to_decide:
        listed = "\n".join(f"- {frame.plain(each)}" for each in verdict.to_decide)
        st.markdown(f"**What would {'decide' if verdict.cause == 'undecided' else 'confirm'} it**\n\n{listed}")


def _change(change: Change, run_id: str) -> None:
    st.markdown(f"**What would help:** {frame.plain(change.says)}")
    fields = " · ".join(f"{label_of(field)}: `{_value(value)}`" for field, value in change.fields.items())
    st.markdown(fields)
    st.caption(f"{frame.plain(change.expected)} Evidence: {change.level}.")
    with st.container(horizontal=True, vertical_alignment="center"):
        adopt_button(change.recipe, f"the Why page for Run {run_id}", key=f"help-{run_id}")
        if change.run_id is not None:
            frame.link("why", "Why of that Run", icon=":material/query_stats:", run=change.run_id)


def _value(value: object) -> str:
    return "default" if value is None else str(value).replace("`", "")


def draw_others(findings: tuple[Finding, ...]) -> None:
    """Other causes with the share of a request's time that each explains, largest first."""
    if not findings:
        return
    st.subheader("What else takes the time")
    st.dataframe(
        [
            {"cause": CAUSES[each.cause][0], "share": 100 * each.share, "what": each.sentence}
            for each in sorted(findings, key=lambda each: -each.share)
        ],
        column_config={
            "cause": st.column_config.TextColumn("Cause"),
            "share": st.column_config.ProgressColumn(
                "Share of a request's time",
                format="%.1f %%",
                min_value=0,
                max_value=100,
                help="How much of the mean time from sent to last token it explains. Shares of different causes "
                "may overlap where no profile splits the steps.",
            ),
            "what": st.column_config.TextColumn("What"),
        },
        hide_index=True,
        alt="Other causes and their share of a request's time.",
    )


def draw_figures(runs: list[tuple[str, Explanation]]) -> None:
    """Measured and least times, MBU and MFU of prefill and decode of each Run."""
    rows = [
        {"Run": label, "Work": name} | _cells(point)
        for label, found in runs
        if found.roofline is not None
        for name, point in (("one prompt", found.roofline.prefill), ("one decode step", found.roofline.decode))
    ]
    known = [name for name in rows[0] if any(row[name] != fmt.NOT_MEASURED for row in rows)]
    st.dataframe(
        [{name: row[name] for name in known} for row in rows],
        column_config={
            "At least": st.column_config.TextColumn(help=_FLOOR_HELP),
            "MBU": st.column_config.TextColumn(help=_MBU_HELP),
            "MFU": st.column_config.TextColumn(help=_MFU_HELP),
            "Read": st.column_config.TextColumn(help="Weights, keys and values, from the model's sizes."),
            "FLOPs a byte": st.column_config.TextColumn(help="Arithmetic intensity: the place on the roofline."),
        },
        hide_index=True,
        alt="Prefill and decode of each Run against the device's ceilings.",
    )


def _cells(point: Point) -> dict[str, str]:
    return {
        "Measured": fmt.ms(point.ms),
        "At least": fmt.ms(point.floor_ms),
        "MBU": _percent(point.mbu),
        "MFU": _percent(point.mfu),
        "Read": fmt.size(point.work.bytes),
        "FLOPs a byte": fmt.number(point.work.intensity),
    }


def _percent(value: float | None) -> str:
    return fmt.NOT_MEASURED if value is None else f"{value:.1%}"
