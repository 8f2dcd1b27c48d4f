"""Filters of the Runs page, and the pinned baseline; a link carries them.

This file does not know how Runs are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import streamlit as st

from mcp_core.decision.facts import RunFacts
from pages._ui import links, run_table, workbench
from pages._ui.run_table import RunsBeside

if TYPE_CHECKING:
    from mcp_core.decision.compare import Comparison

__all__ = ["against_baseline", "filtered", "pinned_baseline"]

# A field of a Run has one value, several (tags) or none.
_FIELDS: dict[str, tuple[str, Callable[[RunFacts, RunsBeside], tuple[str, ...]]]] = {
    "model": ("Model", lambda run, _: (run_table.model_of(run),)),
    "engine": ("Engine", lambda run, _: (run.engine,)),
    "scheme": ("Scheme", lambda run, _: (run_table.scheme_of(run),)),
    "workload": ("Workload", lambda run, _: (run.workload,)),
    "device": ("Device", lambda run, _: (run.device or "none",)),
    "status": ("Status", lambda run, _: (run.status,)),
    "tag": ("Tag", lambda run, about: about.tags(run.id)),
    "versions": ("Versions", lambda run, about: ("stale" if run.id in about.stale else "current",)),
}


def filtered(runs: Sequence[RunFacts], about: RunsBeside) -> tuple[RunFacts, ...]:
    """Draw the filters and return what passes them. A field that all Runs agree on has none."""
    found = {name: {of(run, about) for run in runs} for name, (_, of) in _FIELDS.items()}
    values = {name: sorted({each for some in found[name] for each in some}) for name in _FIELDS}
    shown = [name for name in _FIELDS if len(found[name]) > 1]
    _say_unknown(values)
    if not shown:
        return tuple(runs)
    with st.expander("Filter", icon=":material/filter_list:", expanded=any(_asked(name) for name in shown)):
        columns = st.columns(3)
        for place, name in enumerate(shown):
            chosen = columns[place % 3].multiselect(
                _FIELDS[name][0], values[name], key=f"filter-{name}", bind="query-params", placeholder="any"
            )
            if chosen:
                of, wanted = _FIELDS[name][1], set(chosen)
                runs = [run for run in runs if not wanted.isdisjoint(of(run, about))]
    return tuple(runs)


def _asked(name: str) -> bool:
    return bool(st.query_params.get_all(f"filter-{name}"))


def _say_unknown(values: Mapping[str, Sequence[str]]) -> None:
    """What a link filters by and no Run has; what all Runs have is no filter, and nothing has to be said."""
    for name, (title, _) in _FIELDS.items():
        unknown = [each for each in st.query_params.get_all(f"filter-{name}") if each not in values[name]]
        if unknown:
            links.not_found(
                f"No Run has the {title.lower()} {', '.join(unknown)}.", "That part of the filter is left out."
            )


def pinned_baseline(runs: Sequence[RunFacts]) -> RunFacts | None:
    """Choose the Run, of each configuration and load one, that all others are compared with; None at first."""
    good = {run.id: run for run in runs if run.measured}
    asked = links.asked(
        "baseline",
        good.get,
        "Run {} cannot be the baseline: it is not among those that were measured and pass the filter.",
        "Nothing is pinned.",
    )
    # Repeats are compared together, so that one stands for all: the linked one, else the newest.
    ids = list({run.kind: run.id for run in [*reversed(good.values()), *([asked] if asked else [])]}.values())[::-1]
    if len(ids) < 2:
        return None
    chosen = st.selectbox(
        "Baseline",
        ids,
        index=ids.index(asked.id) if asked else None,
        format_func=lambda each: run_table.label(good[each]),
        placeholder="Pin a Run to see the others as ratios to it",
        help="Compared are configurations at the same load: all repeats of one with all of the other, in pairs.",
    )
    if chosen is None:
        st.query_params.pop("baseline", None)
        return None
    st.query_params["baseline"] = chosen
    return good[chosen]


def against_baseline(shown: Sequence[RunFacts], baseline: RunFacts, runs: Sequence[RunFacts]) -> dict[str, str]:
    """By Run, how its configuration compares with the baseline's; what cannot be compared says why."""
    found = workbench.get_workbench().decisions.speeds(baseline, shown, runs)
    return {
        run.id: "baseline" if run.configuration == baseline.configuration else _words(found[run.id])
        for run in shown
    }


def _words(found: Comparison) -> str:
    if found.ratio is None:
        return found.why.partition(":")[0]
    interval = "" if found.ratio.low is None else f" ({found.ratio.low:.2f}-{found.ratio.high:.2f})"
    card = ", another card" if found.caveat else ""
    return f"{found.ratio.value:.2f}×{interval} {found.verdict}{card}"
