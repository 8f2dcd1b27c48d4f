"""Every Fidelity that was measured: a picture of KL by Recipe and a table; a row opens it.

This file does not know what is shown of the one that is opened (``fidelity_result.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from mcp_core.results import StoredFidelity
from pages._ui import charts, frame
from pages._ui import format as fmt
from pages._ui.fidelity_result import DEFINITIONS

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["comparison_figure", "fidelity_table"]

# Figures with their width and meaning: what stands first has to be seen without scrolling on a page of 1280.
_FIGURES = {
    "KL, nats": (72, "kl"),
    "× noise floor": (98, "floor"),
    "Top-1 agreement, %": (132, "top1"),
    "Perplexity": (80, "perplexity"),
    "RMS Δp, %": (76, "rms_dp"),
}
_WIDTHS = {"When": 84, "Model": 150, "Recipe": 228, "Status": 108}
# Said once above the table where all rows agree.
_OFTEN_ONE = ("Model", "Text", "Engine")


def fidelity_table(stored: Sequence[StoredFidelity]) -> str | None:
    """Draw all; the key of the row that was clicked in this run."""
    st.markdown("##### Measured so far", anchors=False)
    if not stored:
        st.caption("None yet. They are kept on this machine and survive a restart.")
        return None
    _compare(stored)
    rows = [_row(each) for each in stored]
    same = [name for name in _OFTEN_ONE if len({row[name] for row in rows}) == 1]
    if same:
        st.caption(" · ".join(f"{name}: {frame.plain(str(rows[0][name]))}" for name in same))
    event = st.dataframe(
        rows,
        column_config=_columns(),
        column_order=[name for name in rows[0] if name not in same],
        hide_index=True,
        placeholder="–",
        on_select="rerun",
        selection_mode="single-row",
        key="fidelities",
        alt="Measured fidelities, newest first.",
    )
    chosen = event.selection.rows
    return stored[chosen[0]].fidelity.key if chosen else None


def comparison_figure(stored: Sequence[StoredFidelity]) -> go.Figure:
    """A bar of mean KL for each, least first, with its standard error, in the Recipe's colour. KL axis: log."""
    import plotly.graph_objects as go

    ordered = sorted(stored, key=lambda each: each.fidelity.kl.mean if each.fidelity.kl else 0.0, reverse=True)
    means = [each.fidelity.kl.mean if each.fidelity.kl else None for each in ordered]
    errors = [(each.fidelity.kl.mean_se or 0.0) if each.fidelity.kl else 0.0 for each in ordered]
    bars = go.Bar(
        orientation="h",
        y=_names(ordered),
        x=means,
        error_x={"type": "data", "array": errors},
        marker={"color": [charts.colour_of(each.recipe.fingerprint) for each in ordered]},
        hovertemplate="%{y}: KL %{x:.3g} nats<extra></extra>",
    )
    return go.Figure(bars).update_layout(
        height=90 + 34 * len(ordered),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis={"title": "mean KL against the reference (nats, log)", "type": "log"},
        yaxis={"automargin": True},
    )


def _columns() -> dict[str, Any]:
    column = st.column_config
    figures = {
        name: column.NumberColumn(format="%.3g", width=width, help=DEFINITIONS[meaning])
        for name, (width, meaning) in _FIGURES.items()
    }
    return figures | {name: column.TextColumn(width=width) for name, width in _WIDTHS.items()}


def _compare(stored: Sequence[StoredFidelity]) -> None:
    """The newest of each Recipe, on the text and model of the newest of all: others are another question."""
    alike = _alike([each for each in stored if each.fidelity.kl is not None and each.fidelity.kl.mean > 0])
    if len(alike) < 2:
        return
    st.plotly_chart(
        comparison_figure(alike),
        config={"displayModeBar": False},
        key="fidelity-comparison",
        alt="Mean KL of each Recipe against one reference on one text.",
    )
    fidelity = alike[0].fidelity
    st.caption(frame.plain(f"Against {fidelity.reference or 'the reference'}, on {fidelity.text_name}."))


def _alike(stored: Sequence[StoredFidelity]) -> list[StoredFidelity]:
    if not stored:
        return []
    newest = stored[0]
    same = [each for each in stored if _is_same_question(each, newest)]
    return list({each.recipe.fingerprint: each for each in reversed(same)}.values())


def _is_same_question(one: StoredFidelity, other: StoredFidelity) -> bool:
    """The same text against the same reference: of one model, or of checkpoints that were made of it. Those have
    names of their own, and their reference is known to be the same by what it made of the text."""
    questions = [(each.fidelity.text_sha256, each.fidelity.reference, each.fidelity.path) for each in (one, other)]
    models = [(each.recipe.model.source, each.recipe.model.id) for each in (one, other)]
    said = [each.fidelity.reference_perplexity for each in (one, other)]
    return questions[0] == questions[1] and (models[0] == models[1] or (said[0] is not None and said[0] == said[1]))


def _names(stored: Sequence[StoredFidelity]) -> list[str]:
    """The Recipe in a line, with its model where not all have one."""
    is_one = len({(each.recipe.model.source, each.recipe.model.id) for each in stored}) == 1
    lines = [fmt.recipe_line(each.recipe) for each in stored]
    if is_one:
        return lines
    return [f"{fmt.model_name(each.recipe)}, {line}" for each, line in zip(stored, lines, strict=True)]


def _row(stored: StoredFidelity) -> dict[str, object]:
    fidelity = stored.fidelity
    return {
        "When": fmt.ago(stored.created),
        "Model": fmt.model_name(stored.recipe),
        "Recipe": fmt.recipe_line(stored.recipe),
        "Status": fidelity.status.replace("-", " "),
        "KL, nats": fidelity.kl.mean if fidelity.kl else None,
        "× noise floor": fidelity.kl_over_floor,
        "Top-1 agreement, %": 100 * fidelity.top1.mean if fidelity.top1 else None,
        "Perplexity": fidelity.perplexity.mean if fidelity.perplexity else None,
        "RMS Δp, %": 100 * fidelity.rms_dp.mean if fidelity.rms_dp else None,
        "Text": fidelity.text_name,
        "Engine": fidelity.engine,
    }
