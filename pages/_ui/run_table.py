"""Runs as a table: one row each, units in the headings, one row to select.

This file does not know where Runs come from, or what is shown of the selected one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import streamlit as st

from mcp_core.results import Run
from pages._ui import format as fmt

__all__ = ["STATUS_WORDS", "csv_text", "draw", "row"]

STATUS_WORDS = {
    "ok": "✓ ok",
    "failed": "✕ failed",
    "cancelled": "■ cancelled",
    "interrupted": "■ interrupted",
    "refused": "⊘ refused",
}
_ROW_PX = 35
_MOST_ROWS_SHOWN = 8


def draw(runs: Sequence[Run], chosen: str | None) -> str | None:
    """The table with ``chosen`` selected; returns the id of the Run that is selected now.

    A ``chosen`` that is not among ``runs`` (an older one, by a link) stays until a row is selected.
    """
    ids = [run.id for run in runs]
    listed = chosen in ids
    event = st.dataframe(
        [_shown(run) for run in runs],
        hide_index=True,
        height=_ROW_PX * (min(len(runs), _MOST_ROWS_SHOWN) + 1) + 2,
        column_config=_columns(),
        column_order=list(_columns()),
        key=f"runs-{ids[0]}-{len(ids)}",
        on_select="rerun",
        selection_mode="single-row",
        selection_default={"selection": {"rows": [ids.index(chosen)]}} if listed and chosen else None,
        placeholder=fmt.NOT_MEASURED,
        alt="Runs, newest first. Select a row to see that Run in full.",
    )
    rows = event.selection.rows
    if rows:
        return ids[rows[0]]
    return None if listed else chosen


def row(run: Run) -> dict[str, Any]:
    """One line of the table; unmeasured is None. GB are 10^9 bytes."""
    speed, memory = run.measurement, run.memory
    peak_bytes = memory.peak_bytes if memory else None
    return {
        "status": run.status,
        "model": fmt.model_name(run.recipe),
        "engine": run.recipe.engine,
        "scheme": run.recipe.quantization.scheme,
        "dtype": run.recipe.dtype,
        "workload": run.workload.name,
        "ttft_p50_ms": speed.ttft_ms.p50 if speed else None,
        "tpot_p50_ms": speed.tpot_ms.p50 if speed else None,
        "output_tok_s": speed.output_tok_s if speed else None,
        "peak_memory_gb": peak_bytes / 1e9 if peak_bytes is not None else None,
        "note": fmt.run_notes(run),
        "created": run.created,
        "id": run.id,
    }


def _shown(run: Run) -> dict[str, Any]:
    """The row as people read it: the status in words, starred where a note limits the figures."""
    values = row(run)
    star = " *" if run.measurement is not None and values["note"] else ""
    return values | {"status": STATUS_WORDS[run.status] + star, "served": fmt.recipe_line(run.recipe)}


def csv_text(runs: Sequence[Run]) -> str:
    """The same rows as CSV, numbers unrounded; unmeasured is empty."""
    rows = [row(run) | {"created": run.created.isoformat()} for run in runs]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _columns() -> dict[str, Any]:
    """Headings with units, and what each figure means."""
    column = st.column_config
    return {
        "status": column.TextColumn(
            "Status", width=72, help="How the measurement ended. * = something limits what it is worth: see Note."
        ),
        "created": column.DatetimeColumn("Created", width=84, format="MM-DD HH:mm", help="In your browser's time."),
        "model": column.TextColumn("Model", width=124),
        "served": column.TextColumn(
            "Served as",
            width=128,
            help="Engine if not transformers · dtype of dense weights · quantization scheme.",
        ),
        "workload": column.TextColumn("Workload", width=72, help="What was asked of the server."),
        "ttft_p50_ms": _number("TTFT (ms)", "ttft_ms", 74, median=True),
        "tpot_p50_ms": _number("TPOT (ms)", "tpot_ms", 74, median=True),
        "output_tok_s": _number("tok/s", "output_tok_s", 54),
        "peak_memory_gb": _number("Peak (GB)", "peak_bytes", 72, "%.2f"),
        "note": column.TextColumn("Note", width=124, help="What limits the worth of the figures."),
        "id": column.TextColumn("Run", help="The Run's id, as mcp-core runs lists it."),
    }


def _number(heading: str, name: str, width: int, pattern: str = "%.1f", *, median: bool = False) -> Any:
    meaning = f"{'Median. ' if median else ''}{fmt.definition(name) or ''}"
    return st.column_config.NumberColumn(heading, width=width, format=pattern, help=meaning)
