"""Confirming a deployment: start it here or name its URL, follow it, predicted beside measured.

This file does not know how a deployment is judged.
"""

from __future__ import annotations

import streamlit as st

from mcp_core.decision.bundle import Bundle
from mcp_core.decision.confirmation import Confirmation
from mcp_core.decision.shipment import Shipment
from mcp_core.views import JobView
from pages._ui import format as fmt
from pages._ui import frame, workbench
from pages._ui.hub_token import current_token
from pages._ui.job_panel import ACTIVE, job_panel

__all__ = ["draw_confirm"]


def draw_confirm(shipment: Shipment, bundle: Bundle, engine: str | None) -> None:
    """The buttons, what runs, the last answer about this Run and target."""
    st.subheader("Confirm")
    st.caption(
        "Runs the same workload, with new prompts, on the deployment itself. Only a confirmed answer is a "
        "recommendation."
    )
    jobs = workbench.get_workbench().studies.all("confirm")
    active = [job for job in jobs if job.state in ACTIVE]
    _start(shipment, bundle, engine, busy=bool(active))
    for job in active:
        job_panel(job)
    if jobs and not active and jobs[0].state != "done":
        st.caption(f"{fmt.sentence(jobs[0].title)} · {fmt.ago(jobs[0].created)}: nothing was measured.")
        job_panel(jobs[0])
    found = next((each for job in jobs if (each := _answer(job, shipment, bundle)) is not None), None)
    if found is not None:
        _show(found)


def _start(shipment: Shipment, bundle: Bundle, engine: str | None, *, busy: bool) -> None:
    url = st.text_input(
        "A server that runs already",
        placeholder="http://127.0.0.1:8000",
        key=f"confirm-url-{bundle.target}",
        help="Its OpenAI-compatible API is measured. Left empty, the command above is started on this machine.",
    ).strip()
    can_start = bundle.command is not None
    if not can_start and not url:
        st.caption(f":material/info: {frame.plain(_why_not_started(bundle))}")
    label = "Measure this server" if url else "Start it and confirm"
    pressed = st.button(
        label, icon=":material/verified:", disabled=busy or not (url or can_start), key="confirm-start"
    )
    if pressed:
        with frame.errors_shown():
            studies = workbench.get_workbench().studies
            studies.start_confirmation(shipment, bundle.target, engine, url or None, current_token())
            st.rerun()


def _why_not_started(bundle: Bundle) -> str:
    if bundle.serves:
        return f"{bundle.title} is not started from here: give its URL."
    return f"A {bundle.title} is no server: measure its Recipe by the command above, or give one's URL."


def _answer(job: JobView, shipment: Shipment, bundle: Bundle) -> Confirmation | None:
    if job.state != "done" or not job.result:
        return None
    found = Confirmation.model_validate(job.result["confirmation"])
    return found if (found.of_run, found.target) == (shipment.run_id, bundle.target) else None


def _show(found: Confirmation) -> None:
    with st.container(border=True):
        st.badge(
            found.evidence.capitalize() if found.holds else "Not confirmed", color="green" if found.holds else "red"
        )
        why = fmt.sentence(found.why.removeprefix("Not confirmed: "))
        st.markdown(f"**{frame.plain(why)}**")
        if any(each.measured is not None for each in found.figures):
            _figures(found)
        for limit in found.limits:
            st.caption(frame.plain(limit))
        _its_run(found)


def _figures(found: Confirmation) -> None:
    rows = [
        {
            "figure": f"{each.name}, {each.unit}" if each.unit not in ("", "1/s") else each.name,
            "predicted": each.predicted,
            "measured": each.measured,
            "error": None if each.error is None else each.error * 100,
        }
        for each in found.figures
    ]
    column = st.column_config
    st.dataframe(
        rows,
        hide_index=True,
        placeholder=fmt.NOT_MEASURED,
        column_config={
            "figure": column.TextColumn("Figure"),
            "predicted": column.NumberColumn("Predicted", format="%.6g", help="By the Run that is shipped."),
            "measured": column.NumberColumn("Measured", format="%.6g", help="On the deployment."),
            "error": column.NumberColumn("Error", format="%+.1f %%", help="Measured / predicted - 1."),
        },
    )


def _its_run(found: Confirmation) -> None:
    """A link to what there is: a Run with figures, one that failed, or none any more."""
    run = workbench.get_workbench().run(found.run)
    if run is None:
        st.caption(":material/info: The Run of this confirmation is no longer stored.")
        return
    label = "See how it failed" if run.measurement is None else "See what was measured"
    frame.link("runs", label, icon=":material/table_rows:", run=run.id)
