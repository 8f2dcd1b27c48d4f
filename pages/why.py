"""Why page: why a Run is as slow as it is, what would help, and the profile that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import streamlit as st

from mcp_core import conflicts
from mcp_core.decision.counterparts import is_of_device
from mcp_core.decision.recipe_changes import changed_fields
from mcp_core.errors import McpError
from mcp_core.evaluation.step_bar import bar_of, why_slower
from mcp_core.evaluation.why import Explanation, explain, fitting_trace
from mcp_core.hardware import Hardware
from mcp_core.models.architecture import ResolvedModel
from mcp_core.results import Run
from pages._ui import format as fmt
from pages._ui import frame, links, profiler_panel, why_charts, why_panel, workbench
from pages._ui.hub_token import current_token
from pages._ui.job_panel import ACTIVE, job_panel
from pages._ui.recipe_options import label_of

frame.require("why")

# Runs to choose from, and among which a change may have been measured.
_RUNS = 200


def draw() -> None:
    """A Run, its verdict, its place below the ceilings, a decode step as a bar, the profiler."""
    st.title("Why")
    with frame.errors_shown():
        runs = workbench.get_workbench().runs(limit=_RUNS)
        chosen, against = _choose(runs)
        if chosen is None:
            _nothing_yet()
        else:
            _draw_run(chosen, against, runs)
        _profiler(chosen)


def _nothing_yet() -> None:
    with st.container(border=True):
        st.header("Nothing has been measured yet")
        st.markdown("A verdict is about a Run: what its time went to, by which figures, and what would help.")
        frame.link("measure", "Measure a model", icon=":material/timer:")


def _choose(runs: Sequence[Run]) -> tuple[Run | None, Run | None]:
    """The Run of the link, else the newest; and another to compare it with."""
    find = workbench.get_workbench().run
    gone = "There is no Run {} here: it was deleted, or is not on this machine."
    linked = links.asked(
        "run", find, gone, "The newest is explained instead." if runs else "No other was measured."
    )
    other = links.asked("against", find, gone, "Nothing is compared.")
    listed = {run.id: run for run in (linked, other, *runs) if run is not None}
    if not listed:
        return None, None
    left, right = st.columns([3, 2])
    models = {fmt.model_name(run.recipe) for run in listed.values()}
    ids = sorted(listed, key=lambda each: listed[each].created, reverse=True)
    first = linked.id if linked else runs[0].id
    chosen = left.selectbox(
        "Run" if len(models) > 1 else f"Run of {next(iter(models))}",
        ids,
        index=ids.index(first),
        format_func=lambda each: _label(listed[each], models),
    )
    others = [each for each in ids if each != chosen]
    if other is not None and other.id == chosen:
        links.not_found("A Run is not compared with itself.", "Nothing is compared.")
    against = right.selectbox(
        "Compare with",
        others,
        index=others.index(other.id) if other and other.id in others else None,
        format_func=lambda each: _label(listed[each], models),
        placeholder="No other Run",
        help="Both in the same figures: which part made one slower.",
    )
    st.query_params.from_dict({"run": chosen} | ({"against": against} if against else {}))
    return listed[chosen], listed.get(against) if against else None


def _label(run: Run, models: AbstractSet[str]) -> str:
    """The model's name only where there are several."""
    speed = run.measurement.output_tok_s if run.measurement else None
    model = f"{fmt.model_name(run.recipe)} · " if len(models) > 1 else ""
    return (
        f"{model}{fmt.recipe_line(run.recipe)} · {run.workload.name} · {fmt.rate(speed)} · "
        f"{run.created:%m-%d %H:%M}"
    )


def _draw_run(run: Run, against: Run | None, runs: Sequence[Run]) -> None:
    found = _explained(run, runs)
    why_panel.draw_verdict(found)
    _ceilings(found)
    shown = [(_short(run), found)]
    if against is not None:
        other = _explained(against, runs)
        shown.append((_short(against, unlike=run), other))
        st.subheader("Compared")
        if words := why_slower(found, other):
            st.markdown(f"**{frame.plain(shown[1][0])}**: {frame.plain(words)} Its verdict: {other.verdict.title}.")
    _roofline(shown)
    _steps(shown)
    why_panel.draw_others(found.verdict.others if found.verdict.cause != "undecided" else found.verdict.others[1:])


def _explained(run: Run, runs: Sequence[Run]) -> Explanation:
    wb = workbench.get_workbench()
    return explain(
        run,
        wb.hardware(),
        model=_model(run),
        trace=fitting_trace(run, (kept.summary for kept in wb.profiles.list())),
        telemetry=wb.run_telemetry(run.id),
        runs=runs,
    )


def _model(run: Run) -> ResolvedModel | None:
    """Its sizes; a server elsewhere and a model that is gone have none, and the verdict then knows less."""
    if run.recipe.model.source == "endpoint":
        return None
    try:
        return workbench.get_workbench().resolve(run.recipe.model, current_token())
    except McpError as error:
        st.caption(f":material/info: The model's sizes are not known: {frame.plain(error.message)}")
        return None


def _ceilings(found: Explanation) -> None:
    """Where they are missing, what measures them: a button if this is the machine, else a command."""
    wb = workbench.get_workbench()
    job = wb.studies.latest("ceilings")
    if job is not None and job.state in ACTIVE:
        job_panel(job)
    if found.case.ceilings is not None or found.case.run.recipe.model.source == "endpoint":
        return
    with st.container(border=True):
        st.markdown(
            "**The ceilings of this Run's device are not measured**: how many bytes and FLOPs a second it reaches "
            "at most. How far this Run stays below them is told once they are known."
        )
        if _is_here(found.case.run, wb.hardware()):
            _measure_here(found)
        else:
            st.caption(
                "Measured on another machine, and its ceilings are not stored with the Run. Measure them there, "
                "then the Run again; it keeps them:"
            )
        st.code(_doctor(found.case.run), "bash")


def _is_here(run: Run, machine: Hardware) -> bool:
    """Whether its device is one of this machine: hosts of one name are many."""
    recipe = conflicts.resolve(run.recipe, run.hardware)
    return is_of_device(run, machine, recipe.device)


def _measure_here(found: Explanation) -> None:
    if st.button("Measure this device", icon=":material/speed:", help="Bandwidth, FLOP/s: about ten seconds."):
        with frame.errors_shown():
            workbench.get_workbench().studies.start_ceilings(found.case.recipe)
            st.rerun()
    st.caption("It takes about ten seconds and nothing else should run meanwhile. The same from a shell:")


def _doctor(run: Run) -> str:
    """With the Run's threads: a CPU's ceilings are those of so many."""
    recipe = conflicts.resolve(run.recipe, run.hardware)
    threads = f" --threads {recipe.threads}" if recipe.device == "cpu" and recipe.threads else ""
    return f"mcp-core doctor --measure{threads}"


def _roofline(shown: list[tuple[str, Explanation]]) -> None:
    if not any(found.roofline for _, found in shown):
        return
    placed = [
        why_charts.Placed(label, found.case.recipe.fingerprint, found.roofline)
        for label, found in shown
        if found.roofline is not None and found.roofline.is_placed
    ]
    if placed:
        _below_the_ceilings(placed)
    else:
        st.subheader("Prefill and decode", help="Measured times, and what they have to read, by the model's sizes.")
    why_panel.draw_figures(shown)


def _below_the_ceilings(placed: Sequence[why_charts.Placed]) -> None:
    st.subheader(
        "Below the ceilings",
        help="Roofline: the sloped line is what memory can deliver, the flat one what the arithmetic can. A point "
        "on the line cannot be faster on this device; the distance below it is what something else takes.",
    )
    st.plotly_chart(
        why_charts.roofline_figure(placed),
        key="roofline",
        alt="Prefill and decode of each Run on axes of FLOPs a byte and FLOP/s, below the device's ceilings.",
    )


def _steps(shown: list[tuple[str, Explanation]]) -> None:
    bars = [(label, bar) for label, found in shown if (bar := bar_of(found)) is not None]
    if not bars:
        return
    st.subheader("One decode step")
    if all(bar.measured for _, bar in bars):
        st.caption(
            "By the profile. On a GPU the gap is what the Run's own step leaves, and dequantization includes "
            "products in the same kernels. On a CPU the gap is time outside any operator, and the profile's own "
            "cost is in all of it."
        )
    else:
        st.caption("Hatched: no profile, so only what reading takes at least; a profile splits the rest.")
    st.plotly_chart(why_charts.steps_figure(bars), key="steps", alt="Parts of one decode step of each Run, in ms.")


def _profiler(run: Run | None) -> None:
    """A new trace explains the Run that is shown, where the worker serves its Recipe."""
    worker = workbench.current_worker()
    serves_it = run is not None and worker is not None and worker.recipe.fingerprint == run.recipe.fingerprint
    profiler_panel.draw_profiler(worker, run.id if run is not None and serves_it else None)


def _short(run: Run, unlike: Run | None = None) -> str:
    """For a legend; where two Runs would read the same, with the first field that differs, else the time."""
    line = fmt.recipe_line(run.recipe)
    if unlike is None or fmt.recipe_line(unlike.recipe) != line:
        return line
    fields = changed_fields(unlike.recipe, run.recipe)
    field = next(iter(fields), None)
    return f"{line} · {label_of(field)}: {fields[field]}" if field else f"{line} ({run.created:%H:%M})"


draw()
