"""What this visitor is choosing: the only place that touches st.session_state.

This file does not know what the server holds (``workbench.py``) or how anything is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import streamlit as st

from mcp_core.decision.remarks import Remarks
from mcp_core.errors import McpError
from mcp_core.generation import Sampling
from mcp_core.goal import Goal
from mcp_core.presets import bundled
from mcp_core.recipe import Recipe
from mcp_core.workload import Workload, short_chat

T = TypeVar("T")


def recipe() -> Recipe:
    """The Recipe being edited; the bundled preset at first."""
    return _get("mcp_recipe", bundled)


def set_recipe(value: Recipe) -> None:
    """Called by the form itself after an edit: its widgets already show ``value``."""
    _set("mcp_recipe", value)


@dataclass(frozen=True, slots=True)
class Adopted:
    """A Recipe that a button elsewhere in the app set, by whom, and the one that was there before."""

    by: str
    before: Recipe
    recipe: Recipe


def use_recipe(value: Recipe, *, by: str = "") -> None:
    """Called from elsewhere ("Use this Recipe"): the form's widgets are drawn anew from ``value``.

    ``by`` is who asks, as the Recipe page then says; empty where the visitor did it on that page.
    """
    _set("mcp_adopted_recipe", Adopted(by, recipe(), value) if by else None)
    _set("mcp_recipe", value)
    _set("mcp_recipe_revision", recipe_revision() + 1)


def adopted_recipe() -> Adopted | None:
    """What ``use_recipe`` set last; None where the visitor did it."""
    return _get("mcp_adopted_recipe", _none)


def recipe_revision() -> int:
    """Part of every key of the recipe form, so that ``use_recipe`` replaces what its widgets hold."""
    return _get("mcp_recipe_revision", int)


def worker_id() -> str | None:
    """The worker this visitor selected; ``workbench.current_worker`` falls back when it is gone."""
    return _get("mcp_worker_id", _none)


def set_worker_id(value: str | None) -> None:
    _set("mcp_worker_id", value)


def conversation_id() -> str | None:
    """The conversation shown; a link carries it as ``?chat=``."""
    return _get("mcp_conversation_id", _none)


def set_conversation_id(value: str | None) -> None:
    _set("mcp_conversation_id", value)


def batch_id() -> str | None:
    """The batch shown on the playground."""
    return _get("mcp_batch_id", _none)


def set_batch_id(value: str | None) -> None:
    _set("mcp_batch_id", value)


def switches_revision() -> int:
    """Part of every key of the playground's switches, so that ``redraw_switches`` replaces what they hold."""
    return _get("mcp_switches_revision", int)


def redraw_switches() -> None:
    """Draw the switches from what the worker does, not from what was asked."""
    _set("mcp_switches_revision", switches_revision() + 1)


def keep_switch_failure(error: McpError) -> None:
    """Why the last change of a switch failed; shown once, after the switches were drawn anew."""
    _set("mcp_switch_failure", error)


def take_switch_failure() -> McpError | None:
    value: McpError | None = st.session_state.pop("mcp_switch_failure", None)
    return value


def race_ids() -> tuple[str, ...]:
    """The races whose lanes are shown; two where each measured one Recipe, as both did not fit at once."""
    return _get("mcp_race_ids", tuple)


def set_race_ids(value: tuple[str, ...]) -> None:
    _set("mcp_race_ids", value)


def replay_began_s() -> float | None:
    """When the replay of the race began (time.time()); None before its first."""
    return _get("mcp_replay_began_s", _none)


def set_replay_began_s(value: float | None) -> None:
    _set("mcp_replay_began_s", value)


def sampling() -> Sampling:
    """How chat replies are sampled. At first greedy: the same prompt gives the same reply under every Recipe."""
    return _get("mcp_sampling", lambda: Sampling(temperature=0.0, top_p=0.9))


def set_sampling(value: Sampling) -> None:
    _set("mcp_sampling", value)


def max_tokens() -> int:
    """Longest chat reply, tokens."""
    return _get("mcp_max_tokens", lambda: 256)


def set_max_tokens(value: int) -> None:
    _set("mcp_max_tokens", value)


def workload() -> Workload:
    """The Workload being edited; short-chat at first."""
    return _get("mcp_workload", short_chat)


def set_workload(value: Workload) -> None:
    _set("mcp_workload", value)


def goal() -> Goal:
    """The Goal being edited on the Decide page; without any limit at first."""
    return _get("mcp_goal", Goal)


def set_goal(value: Goal) -> None:
    _set("mcp_goal", value)


def goal_link() -> str | None:
    """What the Decide page last wrote into its link; anything else in it came from elsewhere."""
    return _get("mcp_goal_link", _none)


def set_goal_link(value: str) -> None:
    _set("mcp_goal_link", value)


def goal_revision() -> int:
    """Part of every key of the Goal form, so that ``redraw_goal`` replaces what its widgets hold."""
    return _get("mcp_goal_revision", int)


def redraw_goal() -> None:
    """Draw the Goal form anew from ``goal``."""
    _set("mcp_goal_revision", goal_revision() + 1)
    _set("mcp_goal_further", None)


def goal_further() -> Goal | None:
    """Limits that the Goal form shows beside its fields; None until the form is drawn anew."""
    return _get("mcp_goal_further", _none)


def set_goal_further(value: Goal) -> None:
    _set("mcp_goal_further", value)


def hub_token() -> str | None:
    """A Hugging Face token typed for this visit; never stored outside this session."""
    return _get("mcp_hub_token", _none)


def set_hub_token(value: str | None) -> None:
    _set("mcp_hub_token", value or None)


def paused_at_s() -> float | None:
    """When the monitor was paused (time.time()); None while it runs."""
    return _get("mcp_paused_at_s", _none)


def set_paused_at_s(value: float | None) -> None:
    _set("mcp_paused_at_s", value)


def compare_opened_s() -> float:
    """When the monitor's comparison of two ranges was first opened (time.time())."""
    return _get("mcp_compare_opened_s", time.time)


def choose_next(key: str, value: str) -> None:
    """The widget of that ``key`` shows ``value`` from the next run on."""
    _set("mcp_choose_next", (key, value))


def begin_with(key: str, value: object) -> None:
    """Right before that widget is first drawn: what it shows, without being the default that it falls back to."""
    if key not in st.session_state:
        st.session_state[key] = value


def apply_choice(key: str) -> None:
    """Right before that widget is drawn: what ``choose_next`` asked for."""
    asked, value = _get("mcp_choose_next", lambda: ("", ""))
    if asked == key:
        st.session_state[key] = value
        _set("mcp_choose_next", ("", ""))


def drawn_state() -> object:
    """What the last full run drew of workers and jobs; the sidebar compares it with what is true now."""
    return _get("mcp_drawn_state", _none)


def set_drawn_state(value: object) -> None:
    _set("mcp_drawn_state", value)


def drawn_remarks() -> tuple[str, Remarks] | None:
    """The Run whose tags and note the last run drew, and these."""
    return _get("mcp_drawn_remarks", _none)


def set_drawn_remarks(run_id: str, found: Remarks) -> None:
    _set("mcp_drawn_remarks", (run_id, found))


def first_time(event: str) -> bool:
    """True once per ``event`` and visit: for toasts that must not come twice."""
    seen: set[str] = _get("mcp_seen_events", set)
    if event in seen:
        return False
    _set("mcp_seen_events", seen | {event})
    return True


def leave_for(page: str, query: dict[str, str]) -> None:
    """Keep where a deep link pointed while app.py is started (``frame.require``)."""
    _set("mcp_goto", (page, query))


def take_destination() -> tuple[str, dict[str, str]] | None:
    """Where ``leave_for`` pointed, once."""
    value: tuple[str, dict[str, str]] | None = st.session_state.pop("mcp_goto", None)
    return value


def _none() -> Any:
    return None


def _get(key: str, default: Callable[[], T]) -> T:
    if key not in st.session_state:
        st.session_state[key] = default()
    value: T = st.session_state[key]
    return value


def _set(key: str, value: object) -> None:
    st.session_state[key] = value
