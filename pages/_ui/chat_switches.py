"""The switches of the model that a chat talks to: some change live, the others by loading it anew.

This file does not know what a switch did for a chat (``chat_effects.py``) or how the worker changes.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from mcp_core.errors import DoesNotFit, McpError
from mcp_core.hardware import Hardware
from mcp_core.recipe import Recipe
from mcp_core.views import WorkerView
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.hub_token import current_token
from pages._ui.load_panel import unload_and_wait
from pages._ui.recipe_changes import compare
from pages._ui.recipe_options import (
    BATCHING_TITLES,
    COMPILE_TITLES,
    KV_TITLES,
    SPECULATION_TITLES,
    Options,
    choices_of,
    describe,
    in_labels,
    label_of,
    say_refused,
)

__all__ = ["switch_bar"]

_MODE_HELP = (
    "How requests share the model. **Off** answers one at a time, **static** fills a batch and runs it to its end, "
    "**continuous** lets requests join and leave at every step. Changes at once; running replies end first."
)
_PREFIX_HELP = (
    "Keeps what was computed for the beginning of a prompt, so that the next turn need not read it again."
)


def switch_bar(worker: WorkerView, *, busy: bool) -> None:
    """Draw the switches. ``busy`` while a reply is written: a change would have to wait for it."""
    hardware = workbench.get_workbench().hardware()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        changes = _live(worker, hardware, busy)
        with st.popover("KV cache, decode steps, speculation", icon=":material/tune:", disabled=busy):
            _by_reload(worker, hardware)
    _say_failure()
    if changes:
        _apply(worker, worker.recipe.replace(changes))


def _live(worker: WorkerView, hardware: Hardware, busy: bool) -> dict[str, Any]:
    """What the live switches ask for beyond what the worker does."""
    recipe = worker.recipe
    options = _options(recipe, hardware, "batching.mode", recipe.batching.mode)
    why_not = " ".join(f"\n\n**{BATCHING_TITLES[value]}** not here: {reason}" for value, reason in options.refused)
    mode = st.segmented_control(
        label_of("batching.mode"),
        options.offered,
        default=recipe.batching.mode,
        required=True,
        format_func=lambda value: BATCHING_TITLES.get(value, value),
        disabled=busy,
        help=_MODE_HELP + why_not,
        key=_key(worker, "batching"),
    )
    prefix = _toggle(recipe, hardware, "prefix_cache", _PREFIX_HELP, _key(worker, "prefix"), busy)
    asked = {"batching.mode": str(mode), "prefix_cache": prefix}
    now = {"batching.mode": recipe.batching.mode, "prefix_cache": recipe.prefix_cache}
    return {field: value for field, value in asked.items() if value != now[field]}


def _toggle(recipe: Recipe, hardware: Hardware, field: str, meaning: str, key: str, busy: bool = False) -> bool:
    """A switch of the Recipe; disabled, with the reason as its tooltip, where turning it on is refused."""
    value = bool(getattr(recipe, field))
    reason = None if value else _why_not(recipe, hardware, field, True)
    words = f"{meaning}\n\nNot here: {reason}" if reason else meaning
    return st.toggle(label_of(field), value, disabled=busy or reason is not None, help=words, key=key)


def _options(recipe: Recipe, hardware: Hardware, field: str, now: str) -> Options:
    """Values of a switch; what does not go with the other switches as they stand is refused, with the reason."""
    reasons = {
        value: None if value == now else _why_not(recipe, hardware, field, value) for value in choices_of(field)
    }
    offered = tuple(value for value, reason in reasons.items() if reason is None)
    return Options(offered, tuple((value, reason) for value, reason in reasons.items() if reason is not None), now)


def _why_not(recipe: Recipe, hardware: Hardware, field: str, value: str | bool) -> str | None:
    """What this value of a switch would contradict, whichever field the rule names; None when nothing."""
    known = recipe.conflicts(hardware)
    new = [each for each in recipe.replace({field: value}).conflicts(hardware) if each not in known]
    return in_labels(f"{new[0].reason} {new[0].fix}") if new else None


def _apply(worker: WorkerView, wanted: Recipe) -> None:
    """Change the running worker; whatever came of it, the switches are drawn anew from what it really does."""
    mode = wanted.batching.mode
    words = f"Changing to batching {mode}{' with the prefix cache' if wanted.prefix_cache else ''}…"
    try:
        with st.spinner(f"{words} Running replies end first.", show_time=True):
            workbench.get_workbench().apply_live(worker.id, wanted)
    except McpError as error:
        session.keep_switch_failure(error)
    else:
        _follow(wanted, ("batching.mode", "prefix_cache"))
        st.toast(f"Now: batching {mode}, prefix cache {'on' if wanted.prefix_cache else 'off'}.")
    session.redraw_switches()
    st.rerun()


def _say_failure() -> None:
    failure = session.take_switch_failure()
    if failure is not None:
        frame.show_error(failure)


def _by_reload(worker: WorkerView, hardware: Hardware) -> None:
    """Switches that only a new worker can take, and the button that loads one."""
    st.caption("These need a reload.")
    wanted = _reload_switches(worker, hardware)
    changes = compare(worker.recipe, wanted, hardware)
    if not changes:
        return
    st.markdown(changes.as_markdown())
    with frame.errors_shown():
        footprint = workbench.get_workbench().footprint(wanted, current_token())
        st.caption(_what_happens(worker, fits=footprint.fits))
    if st.button("Load with these", type="primary", icon=":material/play_arrow:", key="switches-load"):
        _load(worker, wanted)


def _reload_switches(worker: WorkerView, hardware: Hardware) -> Recipe:
    recipe = worker.recipe
    kind = _select(worker, hardware, "kv.kind", KV_TITLES, recipe.kv.kind)
    speculation = _select(worker, hardware, "speculation", SPECULATION_TITLES, recipe.speculation)
    steps = _select(worker, hardware, "compile", COMPILE_TITLES, recipe.compile)
    changes: dict[str, Any] = {"speculation": speculation, "compile": steps}
    if kind != recipe.kv.kind:  # window and bits belong to the old kind
        changes["kv"] = {"kind": kind, "max_context": recipe.kv.max_context}
    return recipe.replace(changes)


def _select(worker: WorkerView, hardware: Hardware, field: str, titles: dict[str, str], now: str) -> str:
    options = _options(worker.recipe, hardware, field, now)
    chosen = st.selectbox(
        label_of(field),
        options.offered,
        index=options.index,
        format_func=lambda each: titles.get(each, each),
        help=describe(field),
        key=_key(worker, field),
    )
    say_refused(options, titles)
    return str(chosen)


def _what_happens(worker: WorkerView, *, fits: bool) -> str:
    if fits:
        return f"Both fit: {worker.title} as it is now stays loaded, and the sidebar chooses between them."
    others = workbench.others_using(worker.id)
    cut = f" {fmt.count(others, 'other conversation')} with it will be cut off." if others else ""
    return f"Both do not fit at once, so the present one is unloaded first.{cut}"


def _load(worker: WorkerView, wanted: Recipe) -> None:
    """Beside the present worker where both fit, else in its place."""
    with frame.errors_shown():
        try:
            loaded = workbench.get_workbench().load(wanted, hub_token=current_token())
        except DoesNotFit:
            unload_and_wait(worker)
            loaded = workbench.get_workbench().load(wanted, hub_token=current_token())
        session.set_worker_id(loaded)
        _follow(wanted, ("kv", "speculation", "compile"))
        st.rerun()


def _follow(wanted: Recipe, fields: tuple[str, ...]) -> None:
    """The Recipe being edited takes these over, or its page would offer to undo what was just chosen here."""
    changed = wanted.model_dump(mode="json")
    values = {
        field: changed["batching"]["mode"] if field == "batching.mode" else changed[field] for field in fields
    }
    session.use_recipe(session.recipe().replace(values))


def _key(worker: WorkerView, name: str) -> str:
    """A new one when the worker changed or a change failed, so that a switch never shows what is not so."""
    return f"switch-{name}-{worker.id}-{worker.recipe.fingerprint[:8]}-{session.switches_revision()}"
