"""The profiler: record a worker's steps, follow it, and choose among the traces that are kept.

This file does not know how a worker is recorded (``mcp_core/evaluation/profile_job.py``) or a trace drawn
(``trace_panel.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from mcp_core.evaluation.trace_store import MOST_BYTES, KeptTrace
from mcp_core.profile_plan import ProfileLoad, ProfilePlan
from mcp_core.views import JobView, WorkerView
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.job_panel import ACTIVE, job_panel
from pages._ui.trace_panel import draw_comparison, draw_trace

__all__ = ["draw_profiler"]

_STEPS = (4, 8, 16, 32, 64)
_USERS = (1, 2, 4, 8, 16, 32, 64)
_PROMPTS = (16, 64, 256, 1024)
_SENT, _LIVE = "Requests of its own", "Whatever is asked now"
_DETAILS = {"shapes": "Shapes", "memory": "Memory", "stacks": "Python stacks"}
_DETAILS_HELP = "\n\n".join(
    f"**{label}** {ProfilePlan.model_fields[name].description}" for name, label in _DETAILS.items()
)
_CHOSEN = "trace-chosen"


def draw_profiler(worker: WorkerView | None, run_id: str | None = None) -> None:
    """The whole section; ``run_id`` is the Run that a new trace is to explain."""
    st.header(
        "Profiler",
        help="torch.profiler over the engine's own steps: every operator and kernel, who called it, its time.",
    )
    if worker is None or worker.state != "ready":
        frame.link("recipe", "Load a model to record what it does", icon=":material/tune:")
    else:
        _record(worker, run_id)
    kept = workbench.get_workbench().profiles.list()
    if not kept:
        st.caption("No trace is kept yet: Record, with a loaded model, makes one.")
        return
    _traces(kept)


def _record(worker: WorkerView, run_id: str | None) -> None:
    job = _latest(worker)
    if job is not None and job.state in ACTIVE:
        job_panel(job)
        return
    if job is not None and job.state == "done" and session.first_time(f"profile-{job.id}-chosen"):
        session.choose_next(_CHOSEN, (job.result or {}).get("traces", [""])[0])
    if job is not None and job.failure is not None:
        job_panel(job)
    _form(worker, run_id)


def _form(worker: WorkerView, run_id: str | None) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        steps = st.selectbox("Steps", _STEPS, index=1, key="profile-steps", width=100, help="Steps of the engine.")
        source = st.selectbox("While it answers", [_SENT, _LIVE], key="profile-source", width=220)
        own = source == _SENT
        users = st.selectbox("Users", _USERS, key="profile-users", width=100, disabled=not own)
        prompt = st.selectbox(
            "Prompt, tokens", _PROMPTS, index=1, key="profile-prompt", width=140, disabled=not own
        )
        details = st.pills(
            "Recorded with each operator",
            list(_DETAILS),
            selection_mode="multi",
            default=["shapes"],
            format_func=_DETAILS.__getitem__,
            key="profile-details",
            help=_DETAILS_HELP,
        )
        pressed = st.button("Record", type="primary", icon=":material/fiber_manual_record:", key="profile-start")
    st.caption("Recording slows the steps down: their shares count, not their length. It writes no Run.")
    if not pressed:
        return
    plan = ProfilePlan(steps=steps, **{name: name in details for name in _DETAILS})
    # Replies half as long as what is recorded: at least one prefill is among the steps.
    reply = max(2, min(32, steps // 2))
    load = ProfileLoad(concurrency=users, prompt_tokens=prompt, output_tokens=reply) if own else None
    with frame.errors_shown():
        workbench.get_workbench().profiles.start(worker.id, plan, load, run_id)
        st.rerun()


def _latest(worker: WorkerView) -> JobView | None:
    jobs = workbench.get_workbench().jobs()
    mine = (job for job in jobs if job.verb == "profile" and job.detail.get("profiled") == worker.id)
    return max(mine, key=lambda job: job.created, default=None)


def _traces(kept: Sequence[KeptTrace]) -> None:
    listed = {each.id: each for each in kept}
    session.apply_choice(_CHOSEN)
    left, right, side = st.columns((5, 5, 2), vertical_alignment="bottom")
    chosen = left.selectbox("Trace", list(listed), format_func=lambda each: _label(listed[each]), key=_CHOSEN)
    others = [each for each in listed if each != chosen]
    beside = right.selectbox(
        "Beside it",
        others,
        index=None,
        format_func=lambda each: _label(listed[each]),
        placeholder="No other trace",
        key="trace-beside",
        help="What came, went or changed from that trace to the first one.",
    )
    if side.button("Delete", icon=":material/delete:", key="trace-delete", help="Delete the first trace."):
        with frame.errors_shown():
            workbench.get_workbench().profiles.delete(chosen)
            st.rerun()
    total = sum(each.bytes for each in kept)
    st.caption(
        f"{fmt.count(len(kept), 'trace')} kept, {fmt.size(total)} of at most {fmt.size(MOST_BYTES)}: the oldest "
        "go first."
    )
    if beside is None:
        draw_trace(listed[chosen])
    else:
        draw_comparison(listed[beside], listed[chosen])


def _label(kept: KeptTrace) -> str:
    created = kept.summary.created
    when = f"{created:%m-%d %H:%M} · " if created else ""
    model, _, how = kept.summary.title.partition(", ")
    return f"{when}{how or model} · {kept.summary.device}{f' · {model}' if how else ''} · {fmt.size(kept.bytes)}"
