"""Ship: a decision or a Run as files that deploy it, and the deployment measured beside what was predicted."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from mcp_core.decision.decision import Decision
from mcp_core.decision.facts import CONFIRMATION, RunFacts
from mcp_core.decision.report import Report
from mcp_core.decision.shipment import Shipment, of_decision, of_run
from mcp_core.errors import ModelNotFound
from pages._ui import format as fmt
from pages._ui import frame, links, report_downloads, run_table, session, workbench
from pages._ui.confirm_panel import draw_confirm
from pages._ui.decision_panel import evidence_badge
from pages._ui.goal_form import goal_of_link
from pages._ui.ship_files import choose_target, draw_files

frame.require("ship")

_DECISION = "decision"
_GONE = "Run {} is not among those that can be shipped."
_DECIDE_ANEW = "Decide makes it anew from a Goal: open Decide, then choose Ship it."
_MOST_RUNS = 200


def draw() -> None:
    """What is shipped, what speaks for it, the target's files, the check."""
    st.title("Ship")
    with frame.errors_shown():
        goal_of_link("The Goal of this visit, as Decide shows it, is used instead.")
        links.asked("decision", _no_run, "There is no decision {} here: none is kept.", _DECIDE_ANEW)
        runs = [each for each in workbench.get_workbench().decisions.facts() if _can_ship(each)]
        if not runs:
            _nothing_yet()
            return
        decision = workbench.get_workbench().decisions.recommend(session.goal())
        shipment = _choose(runs, decision)
        _evidence(shipment)
        target = choose_target(shipment)
        if target is not None:
            bundle = draw_files(shipment, *target)
            draw_confirm(shipment, bundle, target[1])


def _can_ship(run: RunFacts) -> bool:
    """Something was measured of a model that MCP itself loaded."""
    judged = any(reason.startswith(CONFIRMATION) for reason in run.reasons)
    return run.measured and '"source":"endpoint"' not in run.recipe and not judged


def _nothing_yet() -> None:
    links.asked("run", _no_run, _GONE, "Measure a model, or merge its store: mcp-core runs merge FILE.")
    with st.container(border=True):
        st.header("There is nothing to ship yet")
        st.markdown("Files are made of a Run: one configuration whose speed was measured here.")
        frame.link("measure", "Measure a model", icon=":material/timer:")


def _no_run(_: str) -> None:
    """Nothing is found by any name."""


def _choose(runs: Sequence[RunFacts], decision: Decision) -> Shipment:
    """The Run of the link, else the winner of the Goal that Decide holds, else the newest Run."""
    by_id = {each.id: each for each in runs}
    winner = decision.winner if decision.winner and decision.winner.run in by_id else None
    asked = links.asked(
        "run",
        by_id.get,
        _GONE,
        "The decision's winner is shown instead." if winner else "The newest Run is shown instead.",
    )
    listed = [each.id for each in runs[:_MOST_RUNS]]
    older = [asked.id] if asked and asked.id not in listed else []
    options = [*([_DECISION] if winner else []), *listed, *older]
    chosen = st.selectbox(
        "What is shipped",
        options,
        index=options.index(asked.id) if asked else 0,
        format_func=lambda each: _label(each, by_id, decision),
        help="The winner of the Goal on the Decide page, or any Run of a model that was loaded here.",
    )
    if chosen == _DECISION:
        st.query_params.pop("run", None)
        return of_decision(decision, workbench.get_workbench().run)
    st.query_params["run"] = chosen
    run = workbench.get_workbench().run(chosen)
    if run is None:
        raise ModelNotFound(f"There is no Run {chosen}.", "It may have been deleted.")
    return of_run(run)


def _label(chosen: str, by_id: dict[str, RunFacts], decision: Decision) -> str:
    if chosen == _DECISION:
        assert decision.winner is not None
        return f"The decision's winner: {decision.winner.name}"
    run = by_id[chosen]
    load = "" if run.load is None else f", {_load(run.load, run.load_kind)}"
    return f"{run_table.model_of(run)} · {run.name} · {run.workload}{load} · {run.created[:16].replace('T', ' ')}"


def _load(load: float, kind: str | None) -> str:
    return fmt.count(round(load), "user") if kind == "concurrency" else f"{load:g} requests/s"


def _evidence(shipment: Shipment) -> None:
    with st.container(border=True):
        evidence_badge(shipment.evidence)
        if shipment.decision is not None:
            st.markdown(frame.plain(shipment.decision.answer))
        _figures(shipment)
        with st.container(horizontal=True, vertical_alignment="center"):
            frame.link("runs", "See its Run", icon=":material/table_rows:", run=shipment.run_id)
            label = "Let a Goal decide" if shipment.decision is None else "Change the decision"
            frame.link("decide", label, icon=":material/rule:")
        if shipment.decision is not None:
            decision = shipment.decision
            report_downloads.draw(lambda: Report(decision), "decision", "ship-report")


def _figures(shipment: Shipment) -> None:
    """A decision's are those of its answer, over all fresh starts; else the one Run's."""
    measured, memory = shipment.measurement, shipment.run.memory if shipment.run else None
    winner = shipment.decision.winner if shipment.decision else None
    if winner is not None:
        told = winner.figures
        values = (told.output_tok_s, told.ttft_ms, told.tpot_ms, told.peak_bytes)
    elif measured is not None:
        peak_bytes = memory.peak_bytes if memory else None
        values = (measured.output_tok_s, measured.ttft_ms.p50, measured.tpot_ms.p50, peak_bytes)
    else:
        return
    figures = (
        ("Throughput", fmt.rate(values[0]), "output_tok_s"),
        ("TTFT p50", fmt.ms(values[1]), "ttft_ms"),
        ("TPOT p50", fmt.ms(values[2]), "tpot_ms"),
        ("Peak memory", fmt.size(values[3]), "peak_bytes"),
    )
    with st.container(horizontal=True):
        for label, value, name in figures:
            st.metric(label, value, help=fmt.definition(name))


draw()
