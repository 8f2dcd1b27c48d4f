"""Runs as a table: one row each, units in the headings, one row to select.

This file does not know where Runs come from, or what is shown of the selected one.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import streamlit as st

from mcp_core.decision import spreadsheet
from mcp_core.decision.facts import RunFacts
from mcp_core.decision.remarks import Remarks
from mcp_core.recipe import Recipe
from pages._ui import format as fmt

__all__ = ["STATUS_WORDS", "RunsBeside", "Shared", "csv_text", "draw", "label", "model_of", "row", "scheme_of"]

STATUS_WORDS = {
    "ok": "✓ ok",
    "failed": "✕ failed",
    "cancelled": "■ cancelled",
    "interrupted": "■ interrupted",
    "refused": "⊘ refused",
}
# A line of text, and three: a name is wrapped rather than cut, which Streamlit does in high rows only.
_ROW_PX, _TALL_ROW_PX = 35, 66
_MOST_ROWS_SHOWN, _MOST_TALL_ROWS = 8, 6
_SEVERAL = 2
# Width of Configuration beside Caveats or several models, and alone: what fits a page of 1280, and
# "bf16 · torchao-int8-weight-only ·" in one line.
_CONFIGURATION_PX, _ALONE_PX = 214, 336
# Of a cell: its edges, and a letter of the table's font.
_EDGES_PX, _LETTER_PX = 18, 5.8


@dataclass(frozen=True, slots=True)
class RunsBeside:
    """What is said of Runs beside their figures, by id: people's remarks, and what made them stale."""

    remarks: Mapping[str, Remarks] = field(default_factory=dict)
    stale: Mapping[str, str] = field(default_factory=dict)

    def tags(self, run_id: str) -> tuple[str, ...]:
        """Of one Run."""
        return self.remarks.get(run_id, _NONE).tags


_NONE = Remarks()
_DOT = " · "


@dataclass(frozen=True, slots=True)
class Shared:
    """What all Runs of a table have in common, which is said once beside it: settings, and caveats of figures."""

    settings: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, runs: Sequence[RunFacts], about: RunsBeside) -> Shared:
        """Of one Run, or of repeats of one configuration, nothing is left out of its name."""
        names = dict.fromkeys(run.name for run in runs)
        settings = _in_all([name.split(_DOT)[1:] for name in names])  # the first word names it
        caveats = _in_all([_caveats(run, about.stale.get(run.id, "")) for run in runs if run.latency])
        return cls(settings, caveats, Counter(word for name in names for word in name.split(_DOT)))

    def without(self, run: RunFacts, about: RunsBeside) -> tuple[str, str]:
        """The Run's configuration and its caveats, less what all have; what few have comes first, cut last."""
        first, *others = [word for word in run.name.split(_DOT) if word not in self.settings]
        name = [first, *sorted(others, key=lambda word: self.counts.get(word, 0))]
        caveats = [each for each in _caveats(run, about.stale.get(run.id, "")) if each not in self.caveats]
        return _DOT.join(name), _DOT.join(caveats)


def _in_all(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """In the first one's order; of a single one none."""
    if len(lists) < _SEVERAL:
        return ()
    return tuple(each for each in lists[0] if all(each in other for other in lists[1:]))


def draw(
    runs: Sequence[RunFacts], chosen: str | None, about: RunsBeside, against: Mapping[str, str] | None = None
) -> str | None:
    """The table with ``chosen`` selected; returns the id of the Run that is selected now.

    A ``chosen`` that is not among ``runs`` (an older one, by a link) stays until a row is selected. ``against`` is
    how each Run compares with the pinned baseline, by id; None: nothing is pinned.
    """
    ids = [run.id for run in runs]
    listed = chosen in ids
    remarked = any(run.id in about.remarks for run in runs)
    stale = any(run.id in about.stale for run in runs)
    models = len({run.model for run in runs})
    shared = Shared.of(runs, about)
    beside = {} if against is None else {run.id: {"against": against.get(run.id)} for run in runs}
    rows = [_shown(run, about, shared) | beside.get(run.id, {}) for run in runs]
    caveats = any(each["caveats"] for each in rows)
    columns = _columns(pinned=against is not None, models=models, caveats=caveats, remarked=remarked, stale=stale)
    width = _configuration_px(models=models, caveats=caveats)
    tall = any(_is_wider(each["served"], width) for each in rows)
    row_px, most = (_TALL_ROW_PX, _MOST_TALL_ROWS) if tall else (_ROW_PX, _MOST_ROWS_SHOWN)
    event = st.dataframe(
        rows,
        hide_index=True,
        height=row_px * min(len(runs), most) + _ROW_PX + 2,
        row_height=row_px,
        column_config=columns,
        column_order=list(columns),
        key=f"runs-{ids[0]}-{len(ids)}",
        on_select="rerun",
        selection_mode="single-row",
        selection_default={"selection": {"rows": [ids.index(chosen)]}} if listed and chosen else None,
        placeholder=fmt.NOT_MEASURED,
        alt="Runs, newest first. Select a row to see that Run in full.",
    )
    selected = event.selection.rows
    if selected:
        return ids[selected[0]]
    return None if listed else chosen


def row(run: RunFacts, about: RunsBeside) -> dict[str, Any]:
    """One line of the table; unmeasured is None. GB are 10^9 bytes."""
    remarks = about.remarks.get(run.id, _NONE)
    return {
        "status": run.status,
        "model": model_of(run),
        "engine": run.engine,
        "scheme": run.scheme,
        "dtype": run.dtype,
        "workload": run.workload,
        "load": run.load,
        "ttft_p50_ms": run.figure("ttft_ms", "p50"),
        "tpot_p50_ms": run.figure("tpot_ms", "p50"),
        "output_tok_s": run.output_tok_s,
        "peak_memory_gb": run.peak_bytes / 1e9 if run.peak_bytes is not None else None,
        "energy_j_per_token": run.energy_j_per_token,
        "caveats": _DOT.join(_caveats(run, about.stale.get(run.id, ""))),
        "tags": list(remarks.tags),
        "note": remarks.note,
        "created": datetime.fromisoformat(run.created),
        "id": run.id,
    }


def model_of(run: RunFacts) -> str:
    """The model's short name."""
    return fmt.model_name(_recipe(run.recipe))


def scheme_of(run: RunFacts) -> str:
    """The scheme's name; "unquantized" or "as stored" where none is applied."""
    return run.scheme if run.scheme != "none" else fmt.scheme_of(_recipe(run.recipe))


def label(run: RunFacts) -> str:
    """One Run in a list to choose from."""
    load = "" if run.load is None else f" at {run.load:g}"
    return (
        f"{run.name} · {run.workload}{load} · {fmt.rate(run.output_tok_s)} · {run.created[5:16].replace('T', ' ')}"
    )


def csv_text(runs: Sequence[RunFacts], about: RunsBeside) -> str:
    """The same rows as CSV; unmeasured is empty, tags are divided by commas."""
    return spreadsheet.csv_text(
        [
            row(run, about)
            | {
                "created": datetime.fromisoformat(run.created).isoformat(),
                "tags": ", ".join(about.tags(run.id)),
            }
            for run in runs
        ]
    )


@functools.lru_cache(maxsize=1024)
def _recipe(document: str) -> Recipe:
    return Recipe.from_json(document)


def _caveats(run: RunFacts, stale: str) -> tuple[str, ...]:
    """What limits a Run's worth, a word or two each, as "stale: torch 2.11 then, 2.12 now", "noisy"."""
    smoke = [reason for reason in run.reasons if reason.startswith("smoke test")]
    few = run.latency and run.figure("ttft_ms", "p95") is None
    words = ["smoke test"] if smoke or '"smoke_test":true' in run.workload_document else []
    words += ["too few requests"] if few else []
    reasons = (reason.partition(":")[0] for reason in run.reasons)
    return tuple(dict.fromkeys((*([f"stale: {stale}"] if stale else []), *words, *reasons)))


def _shown(run: RunFacts, about: RunsBeside, shared: Shared) -> dict[str, Any]:
    """The row as people read it: the status in words, starred where something limits the figures."""
    values = row(run, about)
    star = " *" if run.latency and values["caveats"] else ""
    stale = " · stale" if run.id in about.stale else ""
    served, caveats = shared.without(run, about)
    return values | {"status": STATUS_WORDS[run.status] + stale + star, "served": served, "caveats": caveats}


def _configuration_px(*, models: int, caveats: bool) -> int:
    return _CONFIGURATION_PX if models > 1 or caveats else _ALONE_PX


def _is_wider(text: str, width_px: int) -> bool:
    return len(text) * _LETTER_PX + _EDGES_PX > width_px


def _columns(*, pinned: bool, models: int, caveats: bool, remarked: bool, stale: bool) -> dict[str, Any]:
    """Headings with units, and what each figure means."""
    column = st.column_config
    against = {
        "against": column.TextColumn(
            "Against the baseline",
            width=200,
            help="Throughput over the baseline's, by the paired ratio of fresh process starts: better, worse, "
            "equivalent within 3 %, or undecided.",
        )
    }
    limits = {
        "caveats": column.TextColumn(
            "Caveats",
            width=130,
            help="What limits the worth of the figures; what limits all of the table stands below it. Stale: "
            "measured with versions of the driver, the engine or its kernels that the newest Run of that machine "
            "has no longer; measure it again to know.",
        )
    }
    remarks = {
        "tags": column.ListColumn("Tags", width=124, help="What people marked it with; select it to edit them."),
        "note": column.TextColumn("Note", width=150, help="What people said of it."),
    }
    return {
        "status": column.TextColumn(
            "Status",
            width=112 if stale else 72,
            help="How the measurement ended. * = something limits what it is worth: see Caveats. Stale: measured "
            "with versions that its machine has no longer.",
        ),
        "created": column.DatetimeColumn("Created", width=84, format="MM-DD HH:mm", help="In your browser's time."),
        **({"model": column.TextColumn("Model", width=96)} if models > 1 else {}),
        "served": column.TextColumn(
            "Configuration",
            width=_configuration_px(models=models, caveats=caveats),
            help="Dtype of dense weights, then every setting that is not at its default. What all Runs of the "
            "table share stands below it.",
        ),
        "workload": column.TextColumn("Workload", width=100, help="What was asked of the server."),
        "load": column.NumberColumn(
            "Load", width=46, format="%g", help="Users at once, or requests/s that arrive."
        ),
        "ttft_p50_ms": _number("TTFT (ms)", "ttft_ms", 74, median=True),
        "tpot_p50_ms": _number("TPOT (ms)", "tpot_ms", 74, median=True),
        "output_tok_s": _number("tok/s", "output_tok_s", 54),
        **(against if pinned else {}),
        "peak_memory_gb": _number("Peak (GB)", "peak_bytes", 72, "%.2f"),
        **(limits if caveats else {}),
        **(remarks if remarked else {}),
        "id": column.TextColumn("Run", help="The Run's id, as mcp-core runs lists it."),
    }


def _number(heading: str, name: str, width: int, pattern: str = "%.1f", *, median: bool = False) -> Any:
    meaning = f"{'p50. ' if median else ''}{fmt.definition(name) or ''}"
    return st.column_config.NumberColumn(heading, width=width, format=pattern, help=meaning)
