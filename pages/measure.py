"""Measure page: run a workload against the loaded worker and keep the result."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from mcp_core.errors import WorkloadError
from mcp_core.evaluation.capacity import Capacity
from mcp_core.recipe import Recipe
from mcp_core.results import Measurement, Run
from mcp_core.views import JobView, WorkerView
from mcp_core.workload import Workload
from pages._ui import format as fmt
from pages._ui import frame, links, workbench
from pages._ui.capacity_panel import Asked, capacity_form, capacity_result
from pages._ui.job_panel import ACTIVE, job_panel, why_not_now
from pages._ui.run_result import bench_command, run_result
from pages._ui.sweep_panel import sweep_part
from pages._ui.worker_card import no_worker, ready_worker
from pages._ui.workload_form import expectation, workload_form

frame.require("measure")

_LATEST = 8
# Headings and fields, as every table of Runs has them.
_FIGURES = {
    "TTFT p50, ms": ("TTFT (ms)", "ttft_ms"),
    "TPOT p50, ms": ("TPOT (ms)", "tpot_ms"),
    "Throughput, tok/s": ("tok/s", "output_tok_s"),
}
_WIDTHS = {"When": 80, "Workload": 104, "Status": 68}


def draw() -> None:
    """A workload, the measurement that runs or ended last, the latest Runs."""
    st.title("Measure")
    worker = ready_worker()
    if worker is None:
        no_worker("A measurement")
    else:
        st.caption(f"{worker.title} · {fmt.recipe_line(worker.recipe)} · on {worker.device}")
    jobs = [job for job in workbench.get_workbench().jobs() if job.verb in ("bench", "capacity")]
    with st.container(border=True):
        workload = _workload()
        if workload is not None:
            _start_form(worker, workload)
    for job in jobs:
        if job.state in ACTIVE:
            job_panel(job)
    _ended(_chosen(jobs))
    _latest_runs()
    if worker is not None and workload is not None:
        _from_a_shell(worker.recipe, workload)
    sweep_part()


def _workload() -> Workload | None:
    try:
        return workload_form()
    except WorkloadError as error:
        st.warning(f"{error.message} {error.hint}", icon=":material/edit:")
        return None


def _start_form(worker: WorkerView | None, workload: Workload) -> None:
    """What it takes, and Start or why not."""
    st.caption(expectation(workload, worker.recipe if worker else None, _runs()).in_words())
    reason = _not_startable(worker, workload)
    with st.container(horizontal=True):
        if st.button(
            "Start", type="primary", icon=":material/play_arrow:", disabled=reason is not None, key="start"
        ):
            _start(worker, workload)
        _capacity(worker, workload, possible=reason is None and _can_vary(workload))
    if reason is not None:
        st.caption(f":material/info: {reason}")


def _not_startable(worker: WorkerView | None, workload: Workload) -> str | None:
    if worker is None:
        return "Load a model first."
    longest = workload.longest_request
    if worker.max_context is not None and longest > worker.max_context:
        return (
            f"The longest request has {longest:,} tokens; this model's context holds {worker.max_context:,}. "
            "Shorten it, or load with a larger max context on the Recipe page."
        )
    return why_not_now(worker)


def _start(worker: WorkerView | None, workload: Workload) -> None:
    if worker is None:
        return
    with frame.errors_shown():
        st.query_params["job"] = workbench.get_workbench().start_bench(worker.id, workload)
        st.rerun()


def _capacity(worker: WorkerView | None, workload: Workload, *, possible: bool) -> None:
    label, icon = "Find capacity", ":material/speed:"
    meaning = "The largest load that meets your limits: several measurements, each kept as a Run."
    if not possible:
        st.button(label, icon=icon, disabled=True, help=meaning, key="no-capacity")
        return
    with st.popover(label, icon=icon, help=meaning):
        asked = capacity_form(workload)
        if st.button("Start the search", type="primary", key="start-capacity"):
            _search(worker, workload, asked)


def _can_vary(workload: Workload) -> bool:
    """A ramp and a replay have no one load."""
    return workload.arrivals.kind not in ("ramp", "replay")


def _search(worker: WorkerView | None, workload: Workload, asked: Asked) -> None:
    if worker is None:
        return
    with frame.errors_shown():
        bench = workbench.get_workbench()
        st.query_params["job"] = bench.start_capacity(worker.id, workload, asked.goal, asked.budget_s)
        st.rerun()


def _from_a_shell(recipe: Recipe, workload: Workload) -> None:
    with st.expander("The same from a shell", icon=":material/terminal:"):
        own = workload.name == "custom"
        st.code(bench_command("recipe.json", "workload.json" if own else workload.name), language="bash")
        with st.container(horizontal=True):
            _file("recipe.json", recipe.to_json())
            if own:
                _file("workload.json", workload.model_dump_json(indent=2) + "\n")


def _file(name: str, text: str) -> None:
    st.download_button(
        name, text, file_name=name, mime="application/json", on_click="ignore", icon=":material/download:"
    )


def _chosen(jobs: Sequence[JobView]) -> JobView | None:
    """The measurement that the link names once it has ended; else the newest, unless one runs."""
    by_id = {job.id: job for job in jobs}
    gone = "There is no measurement {} here: only the latest ones of this machine are kept."
    named = links.asked("job", by_id.get, gone, "The newest is shown instead." if jobs else "None is shown.")
    if named is not None and named.state not in ACTIVE:
        return named
    newest = max(jobs, key=lambda job: job.created, default=None)
    return newest if newest is not None and newest.state not in ACTIVE else None


def _ended(job: JobView | None) -> None:
    """How it ended, and its Run."""
    if job is None:
        return
    if job.verb == "capacity" and job.result is not None:
        with st.container(border=True):
            st.caption(f"{fmt.sentence(job.title)} · {fmt.ago(job.created)}")
            capacity_result(Capacity.model_validate(job.result))
        return
    if job.run is None:
        job_panel(job)
        return
    with st.container(border=True):
        st.caption(f"{job.title} · {fmt.ago(job.run.created)}")
        run_result(job.run)
        frame.link("runs", "Open this Run", icon=":material/arrow_forward:", run=job.run.id)


def _latest_runs() -> None:
    st.markdown("##### Latest Runs", anchors=False)
    runs = _runs()[:_LATEST]
    if not runs:
        st.caption("None yet. They are kept on this machine and survive a restart.")
        return
    rows = [_run_row(run) for run in runs]
    models = {str(row["Model"]) for row in rows}
    if len(models) == 1:
        st.caption(f"All of {frame.plain(models.pop())}.")
    st.dataframe(
        rows,
        column_config={
            **{
                name: st.column_config.NumberColumn(label, format="%.1f", help=f"{name}. {fmt.definition(field)}")
                for name, (label, field) in _FIGURES.items()
            },
            **{name: st.column_config.Column(width=width) for name, width in _WIDTHS.items()},
            "Run": st.column_config.LinkColumn(display_text="open", width=46),
        },
        column_order=[name for name in rows[0] if name != "Model" or models],
        hide_index=True,
        placeholder="–",
        key="latest-runs",
        alt="The latest Runs, newest first.",
    )
    frame.link("runs", "All Runs", icon=":material/arrow_forward:")


def _run_row(run: Run) -> dict[str, object]:
    measured = run.measurement
    return {
        "When": fmt.ago(run.created),
        "Model": fmt.model_name(run.recipe),
        "Recipe": fmt.recipe_line(run.recipe),
        "Workload": run.workload.name,
        "Status": run.status,
        **dict(zip(_FIGURES, _figures(measured), strict=True)),
        "Run": frame.address("runs", run=run.id),
        "Notes": fmt.run_notes(run),
    }


def _figures(measured: Measurement | None) -> tuple[float | None, ...]:
    """In the order of the headings."""
    if measured is None:
        return (None, None, None)
    return measured.ttft_ms.p50, measured.tpot_ms.p50, measured.output_tok_s


def _runs() -> tuple[Run, ...]:
    """The newest Runs; none, with the reason, when the store cannot be read."""
    with frame.errors_shown():
        return workbench.get_workbench().runs(limit=100)
    return ()


draw()
