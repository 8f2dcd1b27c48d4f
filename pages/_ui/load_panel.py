"""Loading as a page shows it: the button and why it is disabled, progress, failure, the worker that is ready.

This file does not know how a worker is started.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import streamlit as st

from mcp_core.hardware import Hardware
from mcp_core.models.footprint import Footprint
from mcp_core.recipe import Recipe
from mcp_core.views import WorkerView
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.hub_token import current_token
from pages._ui.job_panel import draw_progress
from pages._ui.recipe_changes import compare
from pages._ui.recipe_options import in_labels, label_of
from pages._ui.worker_card import worker_card

__all__ = ["load_panel", "unload_and_wait"]


def load_panel(recipe: Recipe | None, footprint: Footprint | None, hardware: Hardware) -> None:
    """Draw what can be done with the edited Recipe now, by the state of this visitor's worker.

    ``recipe`` is None while the form is incomplete, ``footprint`` None when the model could not be looked up.
    """
    worker = workbench.current_worker()
    if worker is None:
        _load_form(recipe, footprint, hardware)
    elif worker.state == "starting":
        _starting(worker.id)
    elif worker.state == "ready":
        _beside_ready(worker, recipe, footprint, hardware)
        worker_card(worker)
    else:
        _failed(worker, recipe, footprint, hardware)


def _load_form(
    recipe: Recipe | None,
    footprint: Footprint | None,
    hardware: Hardware,
    label: str = "Load",
    failed: str | None = None,
) -> None:
    """The Load button, the consent to load what does not fit, and the reason while it is disabled.

    ``failed`` is a worker that did not come up; another load forgets it.
    """
    reason = _not_loadable(recipe, footprint, hardware)
    force = footprint is not None and not footprint.fits and reason is None and _consent()
    if reason is None and footprint is not None and not footprint.fits and not force:
        reason = "It does not fit in the memory that is free now."
    pressed = st.button(
        label,
        type="primary",
        icon=":material/play_arrow:",
        disabled=reason is not None,
        width="stretch",
        key="load",
    )
    if reason is not None:
        st.caption(f":material/info: {reason}")
    if pressed and recipe is not None:
        _load(recipe, force=force, before=partial(workbench.get_workbench().dismiss, failed) if failed else None)


def _not_loadable(recipe: Recipe | None, footprint: Footprint | None, hardware: Hardware) -> str | None:
    """Why Load is disabled, apart from memory; None when it is not."""
    if recipe is None:
        return "The Recipe is not complete yet."
    for conflict in recipe.conflicts(hardware):
        return in_labels(f"{label_of(conflict.field)}: {conflict.reason} {conflict.fix}")
    return (
        "The model could not be looked up, or this Recipe does not suit it: see above."
        if footprint is None
        else None
    )


def _consent() -> bool:
    return st.checkbox(
        "Load anyway",
        help="Other programs may be slowed down or ended by the system when memory runs out. "
        "Only the worker is at risk; this app goes on.",
        key="load-anyway",
    )


def _load(recipe: Recipe, *, force: bool, before: Callable[[], None] | None = None) -> None:
    with frame.errors_shown():
        if before is not None:
            before()
        session.set_worker_id(workbench.get_workbench().load(recipe, hub_token=current_token(), force=force))
        st.rerun()


@st.fragment(run_every=0.5)
def _starting(worker_id: str) -> None:
    """Redrawn twice a second, only while the worker starts."""
    worker = workbench.get_workbench().worker(worker_id)
    if worker is None or worker.state != "starting":
        st.rerun()
    with st.container(border=True):
        st.markdown(f"**Loading {worker.title}** · {fmt.recipe_line(worker.recipe)}")
        draw_progress(worker.progress)
        if st.button("Cancel", key="cancel-load", icon=":material/stop_circle:"):
            with frame.errors_shown():
                workbench.get_workbench().cancel_load(worker_id)
                st.rerun()


def _failed(worker: WorkerView, recipe: Recipe | None, footprint: Footprint | None, hardware: Hardware) -> None:
    """Cause and hint, another try, a way to be rid of it, and the log on demand."""
    if worker.failure is not None and worker.failure.kind == "cancelled":
        st.info(f"Loading {worker.title} was cancelled.", icon=":material/info:")
    elif worker.failure is not None:
        frame.show_error(worker.failure)
    again = recipe is not None and not compare(worker.recipe, recipe, hardware)
    _load_form(recipe, footprint, hardware, label="Load again" if again else "Load", failed=worker.id)
    if st.button("Dismiss", key="dismiss", icon=":material/close:", type="tertiary"):
        with frame.errors_shown():
            workbench.get_workbench().dismiss(worker.id)
            st.rerun()
    if worker.log_tail:
        with st.expander("Log of the worker", icon=":material/notes:"):
            st.code("\n".join(worker.log_tail), language=None, height=_log_height(len(worker.log_tail)))


def _log_height(lines: int) -> int | Literal["content"]:
    return 240 if lines > 8 else "content"


def _beside_ready(
    worker: WorkerView, recipe: Recipe | None, footprint: Footprint | None, hardware: Hardware
) -> None:
    """What the form changes against the loaded worker, and Apply."""
    if recipe is None:
        return
    changes = compare(worker.recipe, recipe, hardware)
    if not changes:
        return
    with st.container(border=True):
        st.markdown(f"**Not applied yet** to {worker.title}:\n\n{changes.as_markdown()}")
        if changes.live:
            _apply_live(worker, recipe)
        else:
            _apply_by_reload(worker, recipe, footprint, hardware)


def _apply_live(worker: WorkerView, recipe: Recipe) -> None:
    st.caption("Applies live: the worker stays loaded.")
    if st.button("Apply", type="primary", key="apply", width="stretch"):
        with frame.errors_shown():
            workbench.get_workbench().apply_live(worker.id, recipe)
            st.rerun()


_REPLACE, _BESIDE = "Replace", "Side by side"
_UNLOAD_WAIT_S = 15.0


def _apply_by_reload(worker: WorkerView, recipe: Recipe, footprint: Footprint | None, hardware: Hardware) -> None:
    reason = _not_loadable(recipe, footprint, hardware)
    if reason is not None or footprint is None:
        st.button("Apply", type="primary", key="apply", disabled=True, width="stretch")
        st.caption(f":material/info: {reason}")
        return
    way = _way_to_reload(worker, footprint)
    fits = footprint.fits or (way == _REPLACE and _fits_after_unload(worker, footprint))
    force = not fits and _consent()
    if st.button("Apply", type="primary", key="apply", disabled=not (fits or force), width="stretch"):
        unload_first = partial(unload_and_wait, worker) if way == _REPLACE else None
        _load(recipe, force=force, before=unload_first)


def unload_and_wait(worker: WorkerView) -> None:
    """Until its process has ended the memory is not free, and loading would be refused."""
    workbench.get_workbench().unload(worker.id)
    deadline_s = time.monotonic() + _UNLOAD_WAIT_S
    with st.spinner(f"Unloading {worker.title}…"):
        while workbench.get_workbench().worker(worker.id) is not None and time.monotonic() < deadline_s:
            time.sleep(0.1)


def _way_to_reload(worker: WorkerView, footprint: Footprint) -> str:
    """Both fit: the visitor chooses. Otherwise the loaded worker has to go first, which is said."""
    if not footprint.fits:
        st.caption(f"Needs a reload. Both do not fit at once, so {worker.title} is unloaded first.")
        return _REPLACE
    st.caption("Needs a reload. Both fit at once.")
    options = [_REPLACE, _BESIDE]
    chosen = st.segmented_control("How", options, default=_REPLACE, required=True, key="reload-way")
    return str(chosen)


def _fits_after_unload(worker: WorkerView, footprint: Footprint) -> bool:
    """A first look; the Workbench checks again with what is really free then."""
    needed = max(footprint.peak_bytes, footprint.load_peak_bytes)
    return worker.device == footprint.device and needed <= footprint.free_bytes + _held_bytes(worker)


def _held_bytes(worker: WorkerView) -> int:
    """What unloading gives back at least: the weights; on a GPU all that it reserved, keys and values too."""
    memory = worker.memory
    if memory is None:
        return 0
    reserved = memory.peak_bytes if worker.device.startswith("cuda") else None
    return reserved or memory.weights_bytes or 0
