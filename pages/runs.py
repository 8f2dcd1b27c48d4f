"""Runs: every measurement so far, compared and pictured, and one of them in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import streamlit as st

from mcp_core.decision.facts import RunFacts
from mcp_core.decision.remarks import Remarks
from mcp_core.decision.staleness import stale_runs
from pages._ui import frame, links, report_downloads, run_charts, run_filters, run_table, workbench
from pages._ui.run_table import RunsBeside

if TYPE_CHECKING:
    from mcp_core.decision.report import Report

frame.require("runs")

PAGE_SIZE = 100
# Comparisons in a report resample request records: a second or so for all of them.
_MOST_COMPARED = 10
# More are no place in any list, and Python reads only so many.
_MOST_DIGITS = 10
_GONE = "There is no Run {} here: it was deleted, or is not on this machine."


def _draw() -> None:
    st.title("Runs")
    with frame.errors_shown():
        decisions = workbench.get_workbench().decisions
        everything = decisions.facts()
        if not everything:
            _draw_empty()
            return
        about = RunsBeside(decisions.remarks(), stale_runs(everything))
        runs = run_filters.filtered(everything, about)
        if runs:
            _draw_runs(runs, _offset(len(runs)), about)
        else:
            st.info("No Run passes the filter.", icon=":material/filter_list_off:")


def _draw_empty() -> None:
    find = workbench.get_workbench().run
    links.asked("run", find, _GONE, "Bring it here with mcp-core runs merge FILE, or measure a model.")
    with st.container(border=True):
        st.header("Nothing has been measured yet")
        st.markdown(
            "A Run is one Recipe under one Workload on this machine: its speed, its memory, or why it failed. "
            "Runs are kept on disk and survive a restart."
        )
        frame.link("measure", "Measure a model", icon=":material/timer:")


def _draw_runs(runs: tuple[RunFacts, ...], offset: int, about: RunsBeside) -> None:
    baseline = run_filters.pinned_baseline(runs)
    shown = runs[offset : offset + PAGE_SIZE]
    against = run_filters.against_baseline(shown, baseline, runs) if baseline else None
    linked = links.asked("run", workbench.get_workbench().run, _GONE, "The list is shown instead.")
    run_id = run_table.draw(shown, linked.id if linked else None, about, against)
    _draw_under_table(shown, offset, len(runs), about)
    if run_id is None:
        st.query_params.pop("run", None)
        st.caption("Select a row to see everything that was measured.")
        run_charts.draw(runs)
        return
    st.query_params["run"] = run_id
    run = linked if linked and linked.id == run_id else workbench.get_workbench().run(run_id)
    if run is None:
        links.not_found(_GONE.format(run_id), "Choose another.")
    else:
        from pages._ui import run_detail  # a tenth of a second that the list alone does not need

        run_detail.draw(run, about.stale.get(run.id, ""))


def _draw_under_table(shown: Sequence[RunFacts], offset: int, total: int, about: RunsBeside) -> None:
    """How many are shown, older and newer ones, the table as CSV."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(_summary(shown, offset, total, about), width="content")
        if offset and st.button("Newer", icon=":material/chevron_left:"):
            _go_to(offset - PAGE_SIZE)
        if offset + len(shown) < total and st.button("Older", icon=":material/chevron_right:"):
            _go_to(offset + PAGE_SIZE)
        st.download_button(
            "Download CSV",
            data=lambda: run_table.csv_text(shown, about),
            file_name="mcp-runs.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
            help="The table as it is shown, one line a Run.",
        )
    with st.expander("Report of these Runs", icon=":material/description:"):
        st.caption("The Runs above as one file, each against the first.")
        report_downloads.draw(lambda: _report(shown, about.remarks), "runs", "runs-report")


def _summary(shown: Sequence[RunFacts], offset: int, total: int, about: RunsBeside) -> str:
    """How many there are, and what the table leaves out because all of them share it."""
    models = {run_table.model_of(run) for run in shown}
    shared = run_table.Shared.of(shown, about)
    words = [f"Runs {offset + 1}–{offset + len(shown)} of {total:,}", "newest first"]
    words += [f"all of {frame.plain(models.pop())}"] if len(models) == 1 else []
    words += [f"all with {frame.plain(', '.join(shared.settings))}"] if shared.settings else []
    limited = f". All figures: {frame.plain(', '.join(shared.caveats))}" if shared.caveats else ""
    return ", ".join(words) + limited


def _report(shown: Sequence[RunFacts], remarks: Mapping[str, Remarks]) -> Report:
    from mcp_core.decision.report import Report

    decisions, first = workbench.get_workbench().decisions, shown[0]
    others = [each for each in shown[1:_MOST_COMPARED] if first.measured and each.measured]
    compared = {each.id: decisions.compare(first.id, each.id) for each in others}
    return Report(runs=shown, comparisons=compared, remarks=remarks)


def _offset(total: int) -> int:
    """How many newer Runs are left out (``?from=``)."""

    def find(text: str) -> int | None:
        return int(text) if text.isdecimal() and len(text) < _MOST_DIGITS and int(text) < total else None

    beyond = f"There are {total:,} Runs: no place {{}} in their list."
    asked = links.asked("from", find, beyond, "The newest are shown instead.")
    if asked is None:
        st.query_params.pop("from", None)
    return asked or 0


def _go_to(offset: int) -> None:
    st.query_params["from"] = str(max(0, offset))
    st.rerun()


_draw()
