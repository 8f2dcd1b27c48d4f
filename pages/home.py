"""Home: the answer (a model is ready, this fast), or the next step."""

from __future__ import annotations

import streamlit as st

from mcp_core.errors import McpError
from mcp_core.hardware import Hardware
from mcp_core.presets import bundled
from mcp_core.recipe import Recipe
from mcp_core.results import Run
from mcp_core.views import WorkerView
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.job_panel import draw_progress
from pages._ui.run_detail import draw_headline
from pages._ui.run_table import STATUS_WORDS

frame.require("home")


def _draw() -> None:
    worker = workbench.current_worker()
    if worker is None:
        _draw_empty()
    elif worker.state == "starting":
        _draw_loading(worker)
    elif worker.state == "ready":
        _draw_ready(worker)
    else:
        _draw_ended(worker)
    _draw_last_run()
    _draw_machine()


def _draw_empty() -> None:
    st.title("No model is loaded yet")
    st.markdown("MCP serves a language model on this machine, measures it, and helps to choose how to deploy it.")
    with st.container(border=True):
        st.header(fmt.BUNDLED_TITLE)
        st.markdown(_needs(bundled()))
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button("Load the bundled model", type="primary", key="load-bundled"):
                _load(bundled())
            frame.link("recipe", "Choose another model, or how it is served", icon=":material/tune:")


def _needs(recipe: Recipe) -> str:
    """What loading takes: memory, disk, time, in one sentence each; or why it cannot be told."""
    try:
        footprint = workbench.get_workbench().footprint(recipe)
    except McpError as error:
        return str(error)
    peak = max(footprint.peak_bytes, footprint.load_peak_bytes)
    sentences = [
        f"Comes with MCP, no download. Needs {fmt.size(peak)} of the {fmt.size(footprint.free_bytes)} of memory "
        "that are free."
    ]
    if footprint.prepare_bytes:
        sentences.append(f"The first time, {fmt.size(footprint.prepare_bytes)} are written to disk once.")
    if seen := _load_time(recipe):
        sentences.append(seen)
    return " ".join(sentences)


def _load_time(recipe: Recipe) -> str | None:
    """How long it took on this machine before; None without a Run that tells."""
    key = recipe.model.source, recipe.model.id, recipe.quantization.scheme
    for run in _recent_runs():
        ran = run.recipe.model.source, run.recipe.model.id, run.recipe.quantization.scheme
        if ran == key and run.load_s is not None:
            return f"Last time loading took {fmt.duration(run.load_s)}."
    return None


def _load(recipe: Recipe) -> None:
    with frame.errors_shown():
        session.set_worker_id(workbench.get_workbench().load(recipe))
        st.rerun()


def _draw_loading(worker: WorkerView) -> None:
    st.title(f"Loading {worker.title}")
    st.caption(f"{fmt.recipe_line(worker.recipe)} · on {worker.device}")
    st.fragment(_draw_progress, run_every=0.5)(worker.id)


def _draw_progress(worker_id: str) -> None:
    wb = workbench.get_workbench()
    worker = wb.worker(worker_id)
    if worker is None or worker.state != "starting":
        st.rerun()
    draw_progress(worker.progress)
    if st.button("Cancel", key="cancel-load"):
        with frame.errors_shown():
            wb.cancel_load(worker_id)
            st.rerun()


def _draw_ready(worker: WorkerView) -> None:
    st.title(f"{worker.title} is ready")
    st.markdown(_served(worker))
    if worker.random_weights:
        st.info("This model has random weights: speed and memory are real, its text is not.")
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Chat with it", type="primary", icon=":material/chat:", key="to-playground"):
            frame.go_to("playground")
        if st.button("Measure it", icon=":material/timer:", key="to-measure"):
            frame.go_to("measure")
        frame.link("monitor", "Watch it", icon=":material/monitoring:")
        frame.link("recipe", "Change how it is served", icon=":material/tune:")
    if worker.url:
        st.markdown(f":small[Any OpenAI client can use it at] `{worker.url}/v1`")


def _served(worker: WorkerView) -> str:
    """How it is served and what that takes."""
    parts = [fmt.recipe_line(worker.recipe), f"on {worker.device}"]
    if worker.memory is not None and worker.memory.weights_bytes is not None:
        parts.append(f"weights {fmt.size(worker.memory.weights_bytes)}")
    if worker.max_context is not None:
        parts.append(f"context {worker.max_context:,} tokens")
    if worker.load_s is not None:
        parts.append(f"loaded in {fmt.duration(worker.load_s)}")
    return " · ".join(parts)


def _draw_ended(worker: WorkerView) -> None:
    word = "could not be loaded" if worker.state == "failed" else "stopped working"
    st.title(f"{worker.title} {word}")
    st.caption(f"{fmt.recipe_line(worker.recipe)} · on {worker.device}")
    if worker.failure is not None:
        frame.show_error(worker.failure)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Try again", type="primary", key="retry"):
            workbench.get_workbench().dismiss(worker.id)
            _load(worker.recipe)
        if st.button("Dismiss", key="dismiss"):
            workbench.get_workbench().dismiss(worker.id)
            st.rerun()
        frame.link("recipe", "Change the Recipe", icon=":material/tune:")
    if worker.log_tail:
        with st.expander("Last lines of the worker's log"):
            st.code("\n".join(worker.log_tail), language=None)


def _draw_last_run() -> None:
    runs = _recent_runs()
    if not runs:
        return
    run = runs[0]
    st.header("Last measurement")
    what = f"{fmt.model_name(run.recipe)} · {fmt.recipe_line(run.recipe)} · {run.workload.name}"
    st.caption(f"{what}{_where(run)} · {_when(run)}")
    if run.failure is not None:
        st.markdown(f"{STATUS_WORDS[run.status]}: {frame.plain(run.failure.message)}")
    draw_headline(run)
    frame.link("runs", "Open this Run", icon=":material/table_view:", run=run.id)


def _where(run: Run) -> str:
    """The device, where this machine has none such: the Run was brought here."""
    machine, device = workbench.get_workbench().hardware(), fmt.device_of(run)
    here = {machine.cpu, *(each.name for each in machine.devices)}
    return "" if device in here else f" · on {frame.plain(device)}"


def _when(run: Run) -> str:
    notes = fmt.run_notes(run)
    return f"{fmt.ago(run.created)} · {notes}" if notes else fmt.ago(run.created)


def _recent_runs() -> tuple[Run, ...]:
    """The newest Runs; none when the store cannot be read (the runs page says why)."""
    try:
        return workbench.get_workbench().runs(limit=20)
    except McpError:
        return ()


def _draw_machine() -> None:
    """One line; who else uses it; what is installed on demand."""
    st.header("This machine")
    wb = workbench.get_workbench()
    machine = wb.hardware()
    host, gpus = machine.devices[0], machine.cuda_devices
    accelerators = ", ".join(device.name for device in gpus) or "no NVIDIA device"
    st.markdown(
        f"{machine.cpu} · {fmt.count(machine.cores, 'core')} · {fmt.size(host.memory_total_bytes)} memory, "
        f"{fmt.size(host.memory_free_bytes)} free · {accelerators}"
    )
    for app in wb.other_apps():
        st.warning(
            f"Another app is open on the same data: {frame.plain(str(app))}. Both share devices, models and Runs.",
            icon=":material/warning:",
        )
    with st.expander("Details"):
        st.markdown(_details(machine))


def _details(machine: Hardware) -> str:
    """A Markdown list of what is installed."""
    rows = {
        "Operating system": machine.os,
        "Python": machine.python,
        "CPU instructions": ", ".join(machine.cpu_flags) or "none that matter here",
        "NVIDIA driver": machine.driver or "none",
        "torch built for": f"CUDA {machine.torch_cuda}" if machine.torch_cuda else "CPU",
        **machine.libraries,
    }
    rows |= {
        device.id: f"{device.name}, {fmt.size(device.memory_free_bytes)} free" for device in machine.cuda_devices
    }
    return "\n".join(f"- {name}: {value}" for name, value in rows.items())


_draw()
