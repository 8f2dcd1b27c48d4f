"""Runs: every measurement so far, and one of them in full."""

from __future__ import annotations

import streamlit as st

from mcp_core.results import Run
from pages._ui import frame, run_detail, run_table, workbench

frame.require("runs")

PAGE_SIZE = 100


def _draw() -> None:
    st.title("Runs")
    with frame.errors_shown():
        offset = _offset()
        runs = workbench.get_workbench().runs(limit=PAGE_SIZE, offset=offset)
        if runs:
            _draw_runs(runs, offset)
        elif offset:
            st.query_params.pop("from", None)
            st.rerun()
        else:
            _draw_empty()


def _draw_empty() -> None:
    with st.container(border=True):
        st.header("Nothing has been measured yet")
        st.markdown(
            "A Run is one Recipe under one Workload on this machine: its speed, its memory, or why it failed. "
            "Runs are kept on disk and survive a restart."
        )
        frame.link("measure", "Measure a model", icon=":material/timer:")


def _draw_runs(runs: tuple[Run, ...], offset: int) -> None:
    run_id = run_table.draw(runs, st.query_params.get("run"))
    _draw_under_table(runs, offset)
    if run_id is None:
        st.query_params.pop("run", None)
        st.caption("Select a row to see everything that was measured.")
        return
    st.query_params["run"] = run_id
    run = workbench.get_workbench().run(run_id)
    if run is None:
        st.warning(f"There is no Run {run_id}. It may have been deleted.", icon=":material/warning:")
    else:
        run_detail.draw(run)


def _draw_under_table(runs: tuple[Run, ...], offset: int) -> None:
    """How many are shown, older and newer ones, the table as CSV."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"Runs {offset + 1}–{offset + len(runs)}, newest first", width="content")
        if offset and st.button("Newer", icon=":material/chevron_left:"):
            _go_to(offset - PAGE_SIZE)
        if len(runs) == PAGE_SIZE and st.button("Older", icon=":material/chevron_right:"):
            _go_to(offset + PAGE_SIZE)
        st.download_button(
            "Download CSV",
            data=lambda: run_table.csv_text(runs),
            file_name="mcp-runs.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
            help="The table as it is shown, one line a Run.",
        )


def _offset() -> int:
    """How many newer Runs are left out (``?from=``)."""
    text = st.query_params.get("from", "0")
    return int(text) if text.isdecimal() else 0


def _go_to(offset: int) -> None:
    st.query_params["from"] = str(max(0, offset))
    st.rerun()


_draw()
