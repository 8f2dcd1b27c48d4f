"""A Footprint as one sentence, one bar, and one table across schemes.

This file does not know how a Footprint is estimated (``mcp_core/models/footprint.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import streamlit as st

from mcp_core.models.footprint import Footprint
from mcp_core.recipe import SchemeName
from mcp_core.schemes import SCHEMES
from pages._ui import format as fmt
from pages._ui.charts import PALETTE

__all__ = ["SchemeRow", "draw_footprint", "draw_scheme_table"]


@dataclass(frozen=True, slots=True)
class SchemeRow:
    """One scheme for the same model: its Footprint, or the reason why there is none."""

    scheme: SchemeName
    title: str
    chosen: bool
    footprint: Footprint | None
    reason: str = ""


def draw_footprint(footprint: Footprint) -> None:
    """The verdict, what serving takes as one bar of parts, and what happens on disk first."""
    (st.success if footprint.fits else st.error)(
        f"**{footprint.reason}**", icon=":material/check_circle:" if footprint.fits else ":material/block:"
    )
    parts = [part for part in footprint.parts if part[1]]
    st.html(_stacked_bar(parts))
    st.caption(_details(footprint))


def draw_scheme_table(rows: Sequence[SchemeRow]) -> None:
    """The same model in every scheme: memory where it runs, the reason where it does not; the chosen one bold."""
    st.table(
        [_table_row(row) for row in rows],
        hide_index=True,
        border="horizontal",
        alt="Memory of the same model in each quantization scheme.",
    )
    st.caption("Predicted. Serving: the highest at a full context. Loading: the highest from start to ready.")


def _stacked_bar(parts: Sequence[tuple[str, int]]) -> str:
    """HTML: one bar of the parts, and under it their names and sizes. It follows the theme's text colour."""
    total = sum(part for _, part in parts)
    stretches = "".join(
        f'<div style="flex:{part / total:.4f};background:{colour}"></div>'
        for (_, part), colour in zip(parts, PALETTE, strict=False)
    )
    names = "".join(
        f'<span style="white-space:nowrap"><span style="{_MARK}background:{colour}"></span>'
        f"{escape(name)} <b>{fmt.size(part)}</b></span>"
        for (name, part), colour in zip(parts, PALETTE, strict=False)
    )
    return f'<div aria-hidden="true" style="{_BAR}">{stretches}</div><div style="{_NAMES}">{names}</div>'


_BAR = "display:flex;height:22px;border-radius:6px;overflow:hidden;gap:2px"
_NAMES = "display:flex;flex-wrap:wrap;gap:4px 16px;margin-top:10px;font-size:0.875rem"
_MARK = "display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px;"


def _details(footprint: Footprint) -> str:
    serving = f"highest while serving {fmt.size(footprint.peak_bytes)}"
    if footprint.imports_bytes:  # counted where it is judged whether all fits, and no part of a worker's peak
        together = fmt.size(footprint.peak_bytes + footprint.imports_bytes)
        serving += f" and {fmt.size(footprint.imports_bytes)} for the program itself, together {together}"
    facts = [
        f"KV cache: {fmt.size(footprint.kv_bytes_per_token * 1000)} per 1,000 tokens, "
        f"{fmt.size(footprint.kv_bytes)} at {footprint.context_tokens:,}",
        f"highest while loading {fmt.size(footprint.load_peak_bytes)}",
        serving,
    ]
    if footprint.download_bytes:
        facts.append(f"downloads {fmt.size(footprint.download_bytes)} first")
    if footprint.prepare_bytes:
        facts.append(f"writes {fmt.size(footprint.prepare_bytes)} to disk once")
    return "Predicted. " + " · ".join(facts) + "."


def _table_row(row: SchemeRow) -> dict[str, str]:
    scheme = SCHEMES[row.scheme]
    sizes = (
        {"Weights": None, "Serving": None, "Loading": None}
        if row.footprint is None
        else {
            "Weights": row.footprint.weights_bytes,
            "Serving": row.footprint.peak_bytes,
            "Loading": row.footprint.load_peak_bytes,
        }
    )
    fits = "fits" if row.footprint is not None and row.footprint.fits else "does not fit"
    return {
        "Scheme": f"**{row.title}**" if row.chosen else row.title,
        **{name: fmt.size(size) for name, size in sizes.items()},
        "Here": row.reason or fits,
        "Deploys as": scheme.deployable_as,
    }
