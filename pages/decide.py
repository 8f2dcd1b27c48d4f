"""Decide: what has to be reached in, one configuration out, and why each other one was refused."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import streamlit as st

from mcp_core.decision.decision import Choice, Decision
from mcp_core.errors import InputError
from mcp_core.goal import Goal
from pages._ui import decision_panel, frame, workbench
from pages._ui import format as fmt
from pages._ui.goal_form import goal_form, goal_of_link, keep_link

frame.require("decide")

# Refused for what they are about: their loads are none of this decision's.
_ELSEWHERE = ("other model", "other workload", "other hardware")


def draw() -> None:
    """The Goal, the answer, who else meets it, refusals, what would tell more, other loads."""
    st.title("Decide")
    with frame.errors_shown():
        facts = workbench.get_workbench().decisions.facts()
        if not facts:
            _nothing_yet()
            return
        goal = _goal(sorted({each.model for each in facts if each.measured}))
        if goal is None:
            return
        decision = workbench.get_workbench().decisions.recommend(goal)
        decision_panel.draw_answer(decision)
        _other_loads(goal, decision)
        decision_panel.draw_meeting(decision)
        decision_panel.draw_missing(workbench.get_workbench().decisions.with_times(decision))
        decision_panel.draw_refused(decision)
        _from_a_shell(goal)


def _nothing_yet() -> None:
    goal_of_link("Nothing is decided without Runs.")
    with st.container(border=True):
        st.header("Nothing has been measured yet")
        st.markdown("A decision is made by measured Runs: of several configurations, under the same workload.")
        frame.link("measure", "Measure a model", icon=":material/timer:")


def _goal(models: Sequence[str]) -> Goal | None:
    if not goal_of_link("Nothing is decided by it."):
        if st.button("Begin with the Goal of this visit", icon=":material/link_off:", key="drop-goal"):
            st.query_params.pop("goal", None)
            st.rerun()
        return None
    try:
        with st.container(border=True):
            goal = goal_form(models)
    except InputError as error:
        st.warning(f"{frame.plain(error.message)} {frame.plain(error.hint)}", icon=":material/edit:")
        return None
    keep_link(goal)
    return goal


def _other_loads(goal: Goal, decision: Decision) -> None:
    """Which one leads at another load: only loads that were measured can be chosen."""
    loads = sorted({point.load for each in _all(decision) for point in each.points} | set(_refused_loads(decision)))
    if len(loads) < 2:
        return
    unit = "users" if decision.load_kind == "concurrency" else "requests/s"
    served = decision.winner.load if decision.winner else decision.load
    with st.container(border=True):
        load = st.select_slider(
            f"At another load ({unit})",
            loads,
            value=served if served in loads else loads[0],
            format_func=lambda each: f"{each:g}",
            key=f"load-{len(loads)}-{loads[-1]:g}",
            help="Measured loads only; nothing is extrapolated.",
        )
        name = "users" if decision.load_kind == "concurrency" else "rate_s"
        asked = {"users": None, "rate_s": None} | {name: int(load) if name == "users" else load}
        changed = goal.model_copy(update=asked | _about(goal, decision))
        there = workbench.get_workbench().decisions.recommend(changed)
        meeting = _all(there)
        at = f"At {fmt.count(int(load), 'user')}" if name == "users" else f"At {load:g} {unit}"
        if not meeting:
            st.markdown(f"{at} nothing meets the limits.")
            return
        order = ", then ".join(f"**{frame.plain(each.name)}**" for each in meeting[:3])
        more = f" and {len(meeting) - 3} more" if len(meeting) > 3 else ""
        st.markdown(f"{at}: {order}{more}; {len(there.refused)} refused.")


def _about(goal: Goal, decision: Decision) -> dict[str, object]:
    """What the answer is about, where the Goal leaves it open: another load is not another workload or model."""
    if decision.winner is None:
        return {}
    runs = {each.run for each in _all(decision)}
    models = {facts.model for facts in workbench.get_workbench().decisions.facts() if facts.id in runs}
    return {"workload": goal.workload or decision.winner.workload, "models": goal.models or tuple(sorted(models))}


def _all(decision: Decision) -> tuple[Choice, ...]:
    return (*([decision.winner] if decision.winner else []), *decision.runners_up)


def _refused_loads(decision: Decision) -> list[float]:
    by_run = {facts.id: facts for facts in workbench.get_workbench().decisions.facts()}
    found = (by_run[each.run] for each in decision.refused if each.run in by_run and each.cause not in _ELSEWHERE)
    return [facts.load for facts in found if facts.load is not None and facts.load_kind == decision.load_kind]


def _from_a_shell(goal: Goal) -> None:
    with st.expander("The same from a shell", icon=":material/terminal:"):
        document = goal.model_dump_json(exclude_defaults=True)
        st.code(f"mcp-core recommend {shlex.quote(document)} --out decision.json", language="bash", wrap_lines=True)


draw()
