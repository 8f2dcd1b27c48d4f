"""One ready worker: what it really runs, memory predicted and measured, where to go next, unload.

This file does not know how it was loaded (``load_panel.py``).
"""

from __future__ import annotations

import streamlit as st

from mcp_core.errors import McpError
from mcp_core.models.footprint import Footprint
from mcp_core.presets import bundled
from mcp_core.recipe import Recipe
from mcp_core.views import WorkerView
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.hub_token import current_token
from pages._ui.job_panel import draw_progress

__all__ = ["no_worker", "ready_worker", "worker_card"]


def worker_card(worker: WorkerView) -> None:
    """Title, effective settings, predicted against measured memory, links, Unload."""
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{worker.title}**")
            st.badge("ready", icon=":material/check:", color="green")
            if worker.random_weights:
                st.badge("random text", icon=":material/casino:", color="orange")
        st.caption(_one_line(worker))
        _memory_table(worker)
        with st.expander("Effective settings"):
            st.table(_effective_rows(worker), hide_index=True, border="horizontal")
            if worker.url:
                st.caption(f"OpenAI-compatible API of this worker: `{worker.url}/v1`")
        with st.container(horizontal=True, vertical_alignment="center"):
            frame.link("playground", "Chat", icon=":material/chat:")
            frame.link("measure", "Measure", icon=":material/timer:")
            _unload(worker)


def ready_worker() -> WorkerView | None:
    """This visitor's worker when it is ready; the sidebar chooses where there are several."""
    worker = workbench.current_worker()
    return worker if worker is not None and worker.state == "ready" else None


def no_worker(purpose: str) -> None:
    """The empty state of a page that needs a ready worker: what to do next, with the button that does it."""
    worker = workbench.current_worker()
    if worker is not None and worker.state == "starting":
        _wait_for(worker.id)
        return
    with st.container(border=True):
        st.markdown(f"**No model is loaded.** {purpose} needs one.")
        if worker is not None and worker.failure is not None:
            frame.show_error(worker.failure)
        st.caption("The bundled SmolLM2-135M-Instruct was installed with this app; nothing is downloaded.")
        with st.container(horizontal=True, vertical_alignment="center"):
            if worker is not None and st.button("Load it again", type="primary", key="load-again"):
                _load(worker.recipe, instead_of=worker)
            first = "secondary" if worker is not None else "primary"
            if st.button("Load the bundled model", type=first, key="load-bundled"):
                _load(bundled(), instead_of=worker)
            frame.link("recipe", "Choose another on the Recipe page", icon=":material/arrow_forward:")


def _load(recipe: Recipe, *, instead_of: WorkerView | None) -> None:
    """Load, and once that is accepted forget the worker that failed or died."""
    with frame.errors_shown():
        session.set_worker_id(workbench.get_workbench().load(recipe, hub_token=current_token()))
        if instead_of is not None:
            workbench.get_workbench().dismiss(instead_of.id)
        st.rerun()


@st.fragment(run_every=0.5)
def _wait_for(worker_id: str) -> None:
    """Progress of the load that this page waits for."""
    worker = workbench.get_workbench().worker(worker_id)
    if worker is None or worker.state != "starting":
        st.rerun()
    with st.container(border=True):
        st.markdown(f"**Loading {worker.title}**")
        draw_progress(worker.progress)


def _one_line(worker: WorkerView) -> str:
    facts = [f"on {worker.device}", fmt.recipe_line(worker.recipe)]
    if worker.load_s is not None:
        facts.append(f"loaded in {fmt.duration(worker.load_s)}")
    return " · ".join(facts)


def _memory_table(worker: WorkerView) -> None:
    predicted, measured = _predicted(worker), worker.memory
    if measured is None:
        return
    rows = [
        _compared("Weights", predicted.weights_bytes if predicted else None, measured.weights_bytes),
        _load_peak(worker, predicted, measured.load_peak_bytes),
        _compared("Serve peak", predicted.peak_bytes if predicted else None, measured.peak_bytes)
        | {"Off": "so far"},
    ]
    st.table(rows, hide_index=True, border="horizontal")
    if predicted is not None:
        st.caption(f"The serve peak is predicted at a full context of {predicted.context_tokens:,} tokens.")


def _load_peak(worker: WorkerView, predicted: Footprint | None, resident_bytes: int | None) -> dict[str, str]:
    """Resident memory is what is measured; of a model on a GPU the prediction is of other memory."""
    if worker.device != "cpu":
        return _compared("Host, peak while loading", None, resident_bytes)
    before = worker.predicted or predicted  # loading anew would take less: a GGUF is prepared by now
    return _compared("Load peak", before.load_peak_bytes if before else None, resident_bytes)


def _predicted(worker: WorkerView) -> Footprint | None:
    """None when the model can no longer be looked up; the worker goes on without it."""
    try:
        return workbench.get_workbench().footprint(worker.recipe, current_token())
    except McpError:
        return None


def _compared(name: str, predicted: int | None, measured: int | None) -> dict[str, str]:
    off = "" if not predicted or measured is None else f"{(measured - predicted) / predicted:+.0%}"
    return {"Memory": name, "Predicted": fmt.size(predicted), "Measured": fmt.size(measured), "Off": off}


def _effective_rows(worker: WorkerView) -> list[dict[str, str]]:
    effective = worker.effective
    if effective is None:
        return []
    quantized = f", {effective.quantized_modules} modules" if effective.quantized_modules else ""
    rows = {
        "Device": effective.device,
        "Engine": f"{effective.engine} {effective.engine_version or ''}".strip(),
        "Model type": effective.model_type or fmt.NOT_MEASURED,
        "Parameters": f"{effective.parameters / 1e6:,.1f} M" if effective.parameters else fmt.NOT_MEASURED,
        "Dtype": effective.dtype,
        "Quantization": f"{fmt.scheme_title(effective.scheme)}{quantized}",
        "Kept dense": ", ".join(effective.skipped_modules) or "–",
        "Attention": " · ".join(filter(None, (effective.attention, effective.attention_backend))),
        "KV cache": effective.kv_kind,
        "Max context": f"{effective.max_context:,} tokens",
        "CPU threads": str(effective.threads),
        "Switches": ", ".join(effective.switches) or "–",
    }
    if effective.kv_host_limit_bytes:
        limit = fmt.size(effective.kv_host_limit_bytes)
        rows["Preempted requests"] = f"up to {limit} of host memory, where copying pays"
    if effective.not_carried:
        rows["Not carried over"] = " ".join(effective.not_carried)
    return [{"Setting": name, "Value": value} for name, value in rows.items()]


def _unload(worker: WorkerView) -> None:
    """Unload at once; asks first when other browsers use the worker."""
    if others := workbench.others_using(worker.id):
        with st.popover("Unload", icon=":material/eject:"):
            st.markdown(f"**{fmt.count(others, 'other conversation')}** with this model will be cut off.")
            pressed = st.button("Unload anyway", key="unload-sure", type="primary")
    else:
        pressed = st.button("Unload", key="unload", icon=":material/eject:")
    if pressed:
        with frame.errors_shown():
            workbench.get_workbench().unload(worker.id)
            st.rerun()
