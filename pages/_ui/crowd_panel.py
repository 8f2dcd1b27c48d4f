"""Many users: so many chats at once in each batching mode, every request as a bar while it waits and runs.

This file does not know how requests are sent (``mcp_core/evaluation/crowd_job.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from mcp_core.crowd import MODES, Crowd, CrowdPlan, CrowdRun, refused_modes
from mcp_core.recipe import BatchingMode
from mcp_core.views import JobView, WorkerView
from pages._ui import format as fmt
from pages._ui import frame, workbench
from pages._ui.crowd_chart import chart_height, crowd_chart
from pages._ui.crowd_time import in_words, speed_of
from pages._ui.job_panel import ACTIVE, draw_progress
from pages._ui.recipe_options import BATCHING_TITLES, in_labels

__all__ = ["comparison", "crowd_panel"]

_USERS = (2, 4, 8, 16, 32, 64)
_PROMPTS = (32, 128, 512, 1024)
_REPLIES = (16, 32, 64, 128, 256)


def crowd_panel(worker: WorkerView) -> None:
    """How many users ask how much, then what each of them had."""
    st.caption(
        "Everybody asks at the same time; the same load in each batching mode. A demonstration: it writes no Run."
    )
    job = _newest(worker)
    _form(worker, running=job is not None and job.state in ACTIVE)
    if job is None:
        return
    if job.state in ACTIVE:
        _follow(job.id)
        return
    if job.failure is not None and job.state != "cancelled":
        frame.show_error(job.failure)
    crowd = workbench.get_workbench().demos.crowd(job.id)
    if crowd is not None and crowd.runs:
        _draw(crowd)
        frame.link(
            "measure", "Measure it properly", icon=":material/timer:", help="Repeats, warm-up, a stored Run."
        )


def comparison(crowd: Crowd) -> str | None:
    """The fastest mode against the slowest, in one sentence; None while fewer than two are complete."""
    whole = [run for run in crowd.runs if run.ended and run.completed == crowd.plan.users and run.output_tok_s]
    if len(whole) < 2:
        return None
    slow, fast = (choose(whole, key=lambda run: run.output_tok_s or 0.0) for choose in (min, max))
    ratio = (fast.output_tok_s or 0.0) / (slow.output_tok_s or 1.0)
    users = fmt.count(crowd.plan.users, "user")
    if ratio < 1.05:
        return f"No difference: {users} had their replies in {fmt.duration(slow.elapsed_ms / 1e3)} in every mode."
    return (
        f"{BATCHING_TITLES[fast.mode]} served {users} in {fmt.duration(fast.elapsed_ms / 1e3)}, {slow.mode} in "
        f"{fmt.duration(slow.elapsed_ms / 1e3)}: {ratio:.1f} times the throughput."
    )


def _newest(worker: WorkerView) -> JobView | None:
    jobs = [job for job in workbench.get_workbench().jobs() if job.verb == "crowd" and job.worker_id == worker.id]
    return max(jobs, key=lambda job: job.created, default=None)


def _form(worker: WorkerView, *, running: bool) -> None:
    refused = refused_modes(worker.recipe, workbench.get_workbench().hardware())
    with st.container(horizontal=True, vertical_alignment="bottom"):
        users = st.select_slider("Users at once", _USERS, 16, key="crowd-users", width=260)
        prompt = st.selectbox("Prompt, tokens", _PROMPTS, index=1, key="crowd-prompt", width=130)
        reply = st.selectbox("Reply, tokens", _REPLIES, index=2, key="crowd-reply", width=130)
        modes = st.pills(
            "Modes",
            [mode for mode in MODES if mode not in refused],
            selection_mode="multi",
            default=[mode for mode in MODES if mode not in refused],
            format_func=lambda mode: BATCHING_TITLES[mode],
            key=f"crowd-modes-{worker.id}",
        )
        pressed = st.button(
            f"Send {users} users",
            type="primary",
            icon=":material/groups:",
            disabled=running or not modes,
            key="crowd-start",
        )
    if modes:
        plan = _plan(int(users), int(prompt), int(reply), modes)
        st.caption(f":material/timer: {in_words(plan, speed_of(worker))}")
    for mode, reason in refused.items():
        st.caption(f":material/block: **{BATCHING_TITLES[mode]}**: {in_labels(reason)}")
    if worker.recipe.prefix_cache:
        st.caption("The prefix cache is off meanwhile: every user has another prompt.")
    if pressed:
        with frame.errors_shown():
            workbench.get_workbench().demos.start_crowd(
                worker.id, _plan(int(users), int(prompt), int(reply), modes)
            )
            st.rerun()


def _plan(users: int, prompt: int, reply: int, modes: Sequence[BatchingMode]) -> CrowdPlan:
    in_order = tuple(mode for mode in MODES if mode in modes)
    return CrowdPlan(users=users, prompt_tokens=prompt, output_tokens=reply, modes=in_order)


@st.fragment(run_every=0.5)
def _follow(job_id: str) -> None:
    """Redrawn twice a second while users wait or are answered."""
    job = workbench.get_workbench().job(job_id)
    if job is None or job.state not in ACTIVE:
        st.rerun()
    draw_progress(job.progress)
    if st.button("Cancel", key="crowd-stop", icon=":material/stop_circle:"):
        workbench.get_workbench().cancel_job(job.id)
    crowd = workbench.get_workbench().demos.crowd(job_id)
    if crowd is not None:
        _draw(crowd)


def _draw(crowd: Crowd) -> None:
    """A column a mode, all with the same time axis."""
    words = comparison(crowd)
    if words:
        st.markdown(f"**{words}**")
    end_s = max((run.elapsed_ms for run in crowd.runs), default=0.0) / 1e3
    for mode, column in zip(crowd.plan.modes, st.columns(len(crowd.plan.modes)), strict=True):
        with column:
            run = crowd.of(mode)
            st.markdown(f"**Batching {mode}**")
            if run is None:
                st.caption("Not yet.")
            else:
                _figures(run, crowd.plan.users)
                _bars(run, crowd.plan.users, end_s)


def _figures(run: CrowdRun, users: int) -> None:
    if not run.ended:
        st.caption(f"{fmt.duration(run.elapsed_ms / 1e3)} so far")
        return
    facts = {
        "output_tok_s": ("Throughput", fmt.rate(run.output_tok_s)),
        "duration_s": ("All replies after", fmt.duration(run.elapsed_ms / 1e3)),
        "ttft_ms": ("TTFT p50 · p90", f"{fmt.ms(run.ttft_p50_ms)} · {fmt.ms(run.ttft_p90_ms)}"),
    }
    meanings = "\n\n".join(f"**{label}** {fmt.definition(name) or ''}" for name, (label, _) in facts.items())
    lines = [f"{label} **{text}**" for label, text in facts.values()]
    st.markdown("  \n".join(lines), help=meanings)
    if run.completed < users:
        st.caption(f":material/error: {run.completed} of {users} were answered.")
    if run.failure is not None:
        frame.show_error(run.failure)


def _bars(run: CrowdRun, users: int, end_s: float) -> None:
    st.echarts_chart(
        crowd_chart(run, users, end_s),
        height=chart_height(users),
        key=f"crowd-{run.mode}",
        alt=f"Batching {run.mode}: one bar a user with its time in the queue, for the prompt and for the reply.",
    )
