"""The sidebar of every page: worker, Recipe, device, memory, running jobs, unload. Redraws itself every 2 s.

This file does not know which page is open; when a worker or job changes state it asks for one full run, so that
the page follows.
"""

from __future__ import annotations

import streamlit as st

from mcp_core.monitoring.sample import Sample
from mcp_core.views import JobView, WorkerView
from pages._ui import format as fmt
from pages._ui import frame, session, workbench

ACTIVE_JOB = ("queued", "running")
_BADGES = {
    "ready": ("ready", "green", ":material/check:"),
    "starting": ("loading", "blue", ":material/hourglass_top:"),
    "failed": ("failed", "red", ":material/close:"),
    "died": ("died", "red", ":material/close:"),
    "stopped": ("stopped", "gray", ":material/stop:"),
}


def show() -> None:
    """Draw it: again every 2 s while there is a worker or a job, every 10 s else."""
    state = _state()
    session.set_drawn_state(state)
    with st.sidebar:
        st.fragment(_draw, run_every=2.0 if state else 10.0)()


def badge(worker: WorkerView) -> None:
    """The worker's state as a word with a colour."""
    word, colour, icon = _BADGES[worker.state]
    st.badge(word, icon=icon, color=colour)  # type: ignore[arg-type]


def _state() -> tuple[tuple[str, str], ...]:
    """What decides how pages look: every worker and every job with its state."""
    wb = workbench.get_workbench()
    workers = tuple((worker.id, worker.state) for worker in wb.workers())
    return workers + tuple((job.id, job.state) for job in wb.jobs())


def _draw() -> None:
    if _state() != session.drawn_state():
        st.rerun()
    wb = workbench.get_workbench()
    worker, samples = workbench.current_worker(), wb.telemetry(5.0)
    _choose_worker(worker)
    _draw_worker(worker)
    _draw_memory(worker, samples[-1] if samples else None)
    for job in wb.jobs():
        if job.state in ACTIVE_JOB:
            _draw_job(job)
    if worker is not None and worker.state == "ready":
        _draw_unload(worker)


def _choose_worker(current: WorkerView | None) -> None:
    """Where there are several models: which one the pages are about. One that loads does not lock the others."""
    there = {worker.id: worker for worker in workbench.get_workbench().workers() if worker.state != "stopped"}
    if len(there) < 2 or current is None or current.id not in there:
        return
    ids = list(there)
    chosen = st.selectbox(
        "Model in use",
        ids,
        index=ids.index(current.id),
        format_func=lambda worker_id: _choice(there[worker_id]),
    )
    if chosen != current.id:
        session.set_worker_id(chosen)
        st.rerun()


def _choice(worker: WorkerView) -> str:
    state = "" if worker.state == "ready" else f" · {_BADGES[worker.state][0]}"
    return f"{worker.title} · {fmt.recipe_line(worker.recipe)}{state}"


def _draw_worker(worker: WorkerView | None) -> None:
    if worker is None:
        st.badge("no model loaded", color="gray")
        st.caption(_device_line("auto"))
        return
    badge(worker)
    st.markdown(f"**{worker.title}**")
    st.caption(f"{fmt.recipe_line(worker.recipe)}  \n{_device_line(worker.device)}")
    if worker.state == "starting" and worker.progress is not None:
        progress = worker.progress
        st.progress(progress.fraction or 0.0, text=f"{progress.stage} · {fmt.duration(progress.elapsed_s)}")


def _device_line(device_id: str) -> str:
    device = workbench.get_workbench().hardware().device(device_id)
    if device is None:
        return device_id
    return f"CPU · {device.name}" if device.kind == "cpu" else f"{device.id} · {device.name}"


def _draw_memory(worker: WorkerView | None, sample: Sample | None) -> None:
    """One bar for the host and one for each NVIDIA device, with the worker's share in words."""
    if sample is None:
        return
    own = next((each for each in sample.workers if worker and each.worker_id == worker.id), None)
    own_bytes = own.device_bytes if own else {}
    resident_bytes = own.resident_bytes if own else None
    _bar("System memory", sample.host_memory_used_bytes, sample.host_memory_total_bytes, resident_bytes)
    for device in sample.devices:
        name = f"GPU {device.index} memory"
        _bar(name, device.memory_used_bytes, device.memory_total_bytes, own_bytes.get(device.index))


def _bar(title: str, used_bytes: int, total_bytes: int, worker_bytes: int | None) -> None:
    words = f"{fmt.size(used_bytes)} of {fmt.size(total_bytes)} used"
    if worker_bytes is not None:
        words += f"  \n{fmt.size(worker_bytes)} of it by this model"
    st.progress(min(1.0, used_bytes / total_bytes), text=f":small[**{title}**  \n{words}]")


def _draw_job(job: JobView) -> None:
    with st.container(border=True):
        st.markdown(f":small[**{fmt.sentence(job.title)}**]")
        progress = job.progress
        if progress is None:
            st.caption(job.state)
        else:
            left = f" · {fmt.about(progress.remaining_s)} left" if progress.remaining_s is not None else ""
            st.progress(progress.fraction or 0.0, text=f":small[{progress.message or progress.stage}{left}]")
        if st.button("Cancel", key=f"sidebar-cancel-{job.id}", width="stretch"):
            with frame.errors_shown():
                workbench.get_workbench().cancel_job(job.id)
                st.rerun()


def _draw_unload(worker: WorkerView) -> None:
    """One click; where others chat with the model, or it is being measured, a second one."""
    others = workbench.others_using(worker.id)
    measured = any(
        job.worker_id == worker.id and job.state in ACTIVE_JOB for job in workbench.get_workbench().jobs()
    )
    if not others and not measured:
        clicked = st.button(
            "Unload", key="sidebar-unload", width="stretch", help="End the worker; its memory is free."
        )
    else:
        with st.popover("Unload", width="stretch"):
            if others:
                st.markdown(
                    f"{fmt.count(others, 'other conversation')} with this model, open in another tab or "
                    "browser in the last two minutes, will be cut off."
                )
            if measured:
                st.markdown("It is being measured. Unloading ends the measurement.")
            clicked = st.button("Unload anyway", key="sidebar-unload", type="primary")
    if clicked:
        with frame.errors_shown():
            workbench.get_workbench().unload(worker.id)
            st.rerun()
