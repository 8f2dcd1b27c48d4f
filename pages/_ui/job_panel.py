"""Long work as a page shows it: a progress bar, the job that runs or waits, cancel.

This file does not know what a job does; its result is drawn by the page.
"""

from __future__ import annotations

import streamlit as st

from mcp_core.views import JobView, Progress, WorkerView
from pages._ui import format as fmt
from pages._ui import session, workbench
from pages._ui.frame import errors_shown, show_error

__all__ = ["ACTIVE", "draw_progress", "job_panel", "why_not_now"]

ACTIVE = ("queued", "running")
_ENDED = {
    "done": "finished",
    "failed": "failed",
    "cancelled": "was cancelled",
    "interrupted": "was interrupted by a restart",
}


def why_not_now(worker: WorkerView) -> str | None:
    """That this worker is being measured, in words; None while it may be measured or changed."""
    jobs = workbench.get_workbench().jobs()
    job = next((job for job in jobs if job.state in ACTIVE and job.worker_id == worker.id), None)
    return job and f"This model is being measured. Wait for {job.title} or cancel it."


def draw_progress(progress: Progress | None) -> None:
    """Stage, message, elapsed and remaining time over a bar; without a fraction the bar stays empty."""
    if progress is None:
        st.progress(0.0, text="Starting…")
        return
    times = f"{fmt.duration(progress.elapsed_s)} so far"
    if progress.remaining_s is not None:
        times += f", {fmt.about(progress.remaining_s)} left"
    stage = f"**{progress.stage.capitalize()}**" + (f": {progress.message}" if progress.message else "")
    st.progress(min(1.0, max(0.0, progress.fraction or 0.0)), text=f"{stage} · {times}")


def job_panel(job: JobView) -> None:
    """Follow one job until it ends; the page is then drawn anew. An ended job shows how it ended."""
    if job.state in ACTIVE:
        _follow(job.id)
    elif job.failure is not None and job.state != "cancelled":
        show_error(job.failure)
    elif job.state != "done":
        st.info(f"{fmt.sentence(job.title)} {_ENDED[job.state]}.", icon=":material/info:")


@st.fragment(run_every=0.5)
def _follow(job_id: str) -> None:
    """Redrawn twice a second, only while the job is active."""
    job = workbench.get_workbench().job(job_id)
    if job is None or job.state not in ACTIVE:
        _announce(job)
        st.rerun()
    with st.container(border=True):
        st.markdown(f"**{fmt.sentence(job.title)}**")
        if job.state == "queued":
            st.caption(_queue_words(job))
        else:
            draw_progress(job.progress)
        if st.button("Cancel", key=f"cancel-{job.id}", icon=":material/stop_circle:"):
            with errors_shown():
                workbench.get_workbench().cancel_job(job.id)
                st.toast("Cancelling: the measurement ends within about 5 s.")
                st.rerun()


def _queue_words(job: JobView) -> str:
    ahead = [
        other
        for other in workbench.get_workbench().jobs()
        if other.state in ACTIVE and other.created < job.created and other.id != job.id
    ]
    return f"Waiting: {fmt.count(len(ahead), 'measurement')} ahead." if ahead else "Waiting for the device."


def _announce(job: JobView | None) -> None:
    if job is not None and session.first_time(f"job-{job.id}-ended"):
        st.toast(f"{fmt.sentence(job.title)} {_ENDED.get(job.state, 'ended')}.", duration="long")
