"""The Sweep part of the Measure page: what a plan would measure and take, how far it is, what came of it.

This file does not know how a sweep is run or ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from mcp_core.errors import InputError
from mcp_core.sweep_plan import SweepPlan
from mcp_core.views import JobView
from pages._ui import format as fmt
from pages._ui import frame, links, session, workbench
from pages._ui.fidelity_result import DEFINITIONS
from pages._ui.job_panel import ACTIVE, job_panel
from pages._ui.sweep_form import sweep_form

if TYPE_CHECKING:
    from mcp_core.decision.sweep_record import SweepRecord
    from mcp_core.evaluation.sweep_table import SweepRow
    from mcp_core.sweep_desk import SweepPreview

__all__ = ["sweep_part"]

_SHOWN = 6
# Rows beyond which a table scrolls.
_MANY = 8
_STATES = {
    "pending": "waits",
    "running": "at work",
    "done": "done",
    "refused": "refused",
    "failed": "failed",
}
_FLOOR = "KL, × noise floor"
# Headings and widths: the outcome is seen without scrolling on a page of 1280.
_FIGURES = {
    "Throughput, tok/s": ("tok/s", 56),
    "TTFT p50, ms": ("TTFT (ms)", 74),
    "TPOT p50, ms": ("TPOT (ms)", 74),
}
_FLOOR_MEANING = f"{DEFINITIONS['kl']} In multiples of the noise floor: {DEFINITIONS['floor']}"


def sweep_part() -> None:
    """Many configurations, unattended."""
    st.subheader("Sweep", anchor="sweep")
    st.caption(
        "Measures every combination of the chosen axes by racing: all are probed, the best are measured, the best "
        "three confirmed from fresh starts, which are repeated where others disturbed them. What breaks a fidelity "
        "limit is refused before it is measured. It goes on where it stopped after a crash or a restart."
    )
    active = [job for job in workbench.get_workbench().jobs() if job.verb == "sweep" and job.state in ACTIVE]
    with st.expander("Plan a sweep", icon=":material/grid_view:", expanded=False), frame.errors_shown():
        _plan(active)
    for job in active:
        job_panel(job)
    with frame.errors_shown():
        _sweeps(bool(active))


def _plan(active: Sequence[JobView]) -> None:
    wb = workbench.get_workbench()
    try:
        plan = sweep_form(session.recipe(), session.workload(), wb.hardware())
        preview = wb.sweeps.preview(plan)
    except InputError as error:
        st.warning(f"{error.message} {error.hint}", icon=":material/edit:")
        return
    if plan.workload.smoke_test:
        st.caption(
            f":material/warning: {plan.workload.name} is a smoke test: what it measures decides nothing. "
            "Choose another workload above."
        )
    st.markdown(preview.budget.in_words())
    _cells_before(preview)
    reason = _not_startable(preview, active)
    if st.button(
        "Start sweep", type="primary", icon=":material/play_arrow:", disabled=bool(reason), key="sweep-start"
    ):
        wb.sweeps.start(plan, session.hub_token())
        st.rerun()
    if reason:
        st.caption(f":material/info: {reason}")
    _from_a_shell(plan)


def _not_startable(preview: SweepPreview, active: Sequence[JobView]) -> str:
    if not preview.budget.cells:
        return "None of these configurations can run here."
    return "A sweep is running or waiting. Wait for it or cancel it." if active else ""


def _cells_before(preview: SweepPreview) -> None:
    rows = [
        {
            "Configuration": each.cell.name,
            "Fits": "refused" if each.refused else "yes",
            "Weights": fmt.size(each.footprint.weights_bytes if each.footprint else None),
            "Peak": fmt.size(each.footprint.peak_bytes if each.footprint else None),
            "Why not": f"{each.refused.message} {each.refused.hint}".strip() if each.refused else "",
        }
        for each in preview.cells
    ]
    st.dataframe(
        rows,
        column_config={"Why not": st.column_config.TextColumn(width="large")},
        hide_index=True,
        height=320 if len(rows) > _MANY else "content",
        key="sweep-cells",
        alt="Every configuration and whether it fits.",
    )


def _from_a_shell(plan: SweepPlan) -> None:
    st.caption("The same without a browser, such as on a GPU host; its result file merges into this store:")
    st.code("mcp-core sweep plan.json --out runs.jsonl\nmcp-core runs merge runs.jsonl", language="bash")
    st.download_button(
        "plan.json",
        plan.to_json(),
        file_name="plan.json",
        mime="application/json",
        on_click="ignore",
        icon=":material/download:",
        key="sweep-download",
    )


def _sweeps(is_active: bool) -> None:
    sweeps = workbench.get_workbench().sweeps
    records = sweeps.list(_SHOWN)
    gone = "There is no sweep {} on this machine."
    instead = "The newest is shown instead." if records else "None was made here yet."
    asked = links.asked("sweep", sweeps.get, gone, instead)
    if not records:
        return
    if asked is not None and asked.id not in {each.id for each in records}:
        records = (*records, asked)
    chosen = next((each for each in records if asked is not None and each.id == asked.id), records[0])
    if len(records) > 1:
        chosen = st.selectbox(
            "Shown sweep",
            records,
            index=records.index(chosen),
            format_func=lambda each: f"{each.plan.name}, {fmt.ago(each.created)}, {each.state}",
            key="sweep-shown",
        )
    if is_active and chosen.state == "running":
        _follow(chosen.id)
    else:
        _show(chosen)


@st.fragment(run_every=3)
def _follow(sweep_id: str) -> None:
    """How far each cell is, drawn anew while it runs."""
    record = workbench.get_workbench().sweeps.get(sweep_id)
    if record is not None:
        _show(record)


def _show(record: SweepRecord) -> None:
    done = record.count("done", "failed", "refused")
    st.markdown(
        f"**{fmt.sentence(record.plan.name)}**: {record.state}, {done} of {len(record.cells)} configurations are "
        f"settled, {record.count('refused')} of them refused, {record.count('failed')} failed."
    )
    if record.message:
        st.error(record.message)
    if record.is_resumable:
        _resume(record)
    rows = workbench.get_workbench().sweeps.rows(record)
    shown = [_row(row) for row in rows]
    st.dataframe(
        shown,
        column_order=[name for name in shown[0] if any(row[name] for row in shown)] if shown else None,
        column_config={
            **{
                name: st.column_config.NumberColumn(label, width=width, format="%.1f", help=_help(name))
                for name, (label, width) in _FIGURES.items()
            },
            _FLOOR: st.column_config.NumberColumn("KL, × floor", width=84, format="%.3g", help=_FLOOR_MEANING),
            "State": st.column_config.TextColumn(width=64),
            "How far": st.column_config.TextColumn(width=104),
            "Peak": st.column_config.TextColumn(width=72, help=fmt.definition("peak_bytes")),
            "Run": st.column_config.LinkColumn(display_text="open", width=46),
        },
        hide_index=True,
        placeholder="–",
        key=f"sweep-rows-{record.id}",
        alt="What came of every configuration, best first.",
    )
    _reasons(rows)
    if any(row.stage == "confirm" for row in rows):
        st.caption("Figures of the confirmed ones are those of their fresh starts alone, the median of them.")
    if any(row.score is not None for row in rows):
        frame.link("decide", "Decide from these Runs", icon=":material/arrow_forward:")


def _resume(record: SweepRecord) -> None:
    if st.button("Resume", icon=":material/resume:", key=f"sweep-resume-{record.id}"):
        workbench.get_workbench().sweeps.resume(record.id, session.hub_token())
        st.rerun()


def _row(row: SweepRow) -> dict[str, Any]:
    measured, memory = (row.run.measurement, row.run.memory) if row.run else (None, None)
    figures = (
        (measured.output_tok_s, measured.ttft_ms.p50, measured.tpot_ms.p50) if measured else (None, None, None)
    )
    return {
        "Configuration": row.cell.name,
        "State": _STATES[row.cell.state],
        "How far": row.level if row.stage else "",
        "Throughput, tok/s": figures[0],
        _FLOOR: row.kl_over_floor,  # beside speed, so that it is seen without scrolling
        "TTFT p50, ms": figures[1],
        "TPOT p50, ms": figures[2],
        "Peak": fmt.size(memory.peak_bytes if memory else None),
        "Run": frame.address("runs", run=row.run.id) if row.run else None,
    }


def _reasons(rows: Sequence[SweepRow]) -> None:
    """Why configurations were refused, failed or lack a fidelity: whole sentences, which no column has room for."""
    told = [row for row in rows if row.reason]
    if not told:
        return
    title = f"Why not: {len(told)} configuration{'s' if len(told) > 1 else ''}"
    with st.expander(title, icon=":material/block:", expanded=len(told) <= _MANY):
        st.table(
            [{"Configuration": frame.plain(row.cell.name), "Reason": frame.plain(row.reason)} for row in told],
            hide_index=True,
            border="horizontal",
            alt="Why each of these configurations was refused, failed or has no fidelity.",
        )


def _help(name: str) -> str | None:
    field = {"TTFT p50, ms": "ttft_ms", "TPOT p50, ms": "tpot_ms"}.get(name, "output_tok_s")
    return f"{name}. {fmt.definition(field)}"
