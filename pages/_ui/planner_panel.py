"""The planner: what a Recipe takes at a context and so many users, the most that fits, and how right it was so far.

This file does not know how any of it is computed (``mcp_core/models/planner.py``).
"""

from __future__ import annotations

import streamlit as st

from mcp_core.models.correction import FEWEST, Correction, Error
from mcp_core.models.footprint import Footprint, Predictor
from mcp_core.models.planner import MOST_USERS, ModuleGroup, group_modules, longest_context, users_at
from mcp_core.models.served_load import ServedLoad
from mcp_core.recipe import Recipe
from pages._ui import format as fmt
from pages._ui import frame, memory_charts, workbench
from pages._ui.footprint_chart import draw_footprint

__all__ = ["draw_planner"]

_GROUPS_SHOWN = 10


def draw_planner(recipe: Recipe, hub_token: str | None = None) -> None:
    """Context and users in; bar, table, the two answers, weights by module, and earlier predictions out."""
    corrected = st.toggle(
        "Corrected by Runs on this machine",
        value=True,
        key="planner-corrected",
        help="Adds what the planner was off by in measured Runs of this kind of device and scheme family: the "
        f"median of the newest 20, from {FEWEST} Runs on, at most a quarter of the peak.",
    )
    with frame.errors_shown():
        bench = workbench.get_workbench()
        predictor = bench.predictor(recipe, hub_token, corrected=corrected)
        footprint = predictor.at(_load(predictor))
        draw_footprint(footprint)
        _draw_answers(predictor, footprint)
        _draw_parts(footprint, group_modules(predictor.modules))
        _draw_history(bench.footprint_errors(recipe), footprint.correction)


def _load(predictor: Predictor) -> ServedLoad:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        context = st.number_input(
            "Context (tokens)",
            1,
            predictor.architecture.context,
            min(predictor.max_context, predictor.architecture.context),
            key=f"planner-context-{predictor.architecture.context}-{predictor.max_context}",
            help="Prompt and reply of each user together.",
        )
        users = st.number_input(
            "Users at once",
            1,
            MOST_USERS,
            1,
            key="planner-users",
            help="Sequences held in memory at the same time.",
        )
    return ServedLoad(int(context), int(users))


def _draw_answers(predictor: Predictor, footprint: Footprint) -> None:
    longest = longest_context(predictor, footprint.concurrency)
    users = users_at(predictor, footprint.context_tokens)
    more = "+" if users == MOST_USERS else ""
    with st.container(horizontal=True):
        st.metric(
            "Longest context",
            f"{longest:,} tokens" if longest else "none fits",
            help=f"Most tokens of each of {fmt.count(footprint.concurrency, 'user')} that fit what is free on "
            f"{footprint.device} now; the model's own limit is {predictor.architecture.context:,}.",
            border=True,
            width=190,
        )
        st.metric(
            "Users at this context",
            f"{users:,}{more} {'user' if users == 1 else 'users'}" if users else "none fits",
            help=f"Most sequences of {footprint.context_tokens:,} tokens that fit at once. Batching mode off still "
            "serves them one after the other.",
            border=True,
            width=190,
        )


def _draw_parts(footprint: Footprint, groups: tuple[ModuleGroup, ...]) -> None:
    rows = [
        {"Part": name, "Size": fmt.size(size), "Share": _share(size / footprint.peak_bytes)}
        for name, size in footprint.parts
    ]
    st.table([*rows, {"Part": "**Peak**", "Size": fmt.size(footprint.peak_bytes), "Share": ""}], hide_index=True)
    with st.expander("Weights by module"):
        st.table([_module_row(group) for group in groups[:_GROUPS_SHOWN]], border="horizontal", hide_index=True)
        st.caption("From the model's shapes; nothing was loaded. A star stands for every layer.")


def _share(share: float) -> str:
    return "under 1%" if 0 < share < 0.005 else f"{share:.0%}"


def _module_row(group: ModuleGroup) -> dict[str, str]:
    packed = {"all": "packed", "some": "partly packed", "none": f"dense: {group.dense_because}"}[group.packed]
    return {
        "Module": group.name,
        "Count": f"{group.count:,}",
        "Size": fmt.size(group.bytes),
        "": packed.removesuffix(": "),
    }


def _draw_history(errors: tuple[Error, ...], correction: Correction) -> None:
    with st.expander("Predicted against measured"):
        if not errors:
            st.caption("No Run of this kind of device and scheme family was measured on this machine yet.")
            return
        st.plotly_chart(memory_charts.error_figure(errors), key="planner-errors")
        worst = max(errors, key=lambda each: abs(each.share))
        st.caption(
            f"{fmt.count(len(errors), 'Run')} before any correction; the worst was off by {worst.share:+.1%}. "
            f"{_correction_words(correction)}"
        )


def _correction_words(correction: Correction) -> str:
    if not correction.runs:
        return f"Nothing is corrected (that begins with {FEWEST} Runs, and can be switched off above)."
    sign = "-" if correction.bytes < 0 else "+"
    amount = f"{sign}{fmt.size(abs(correction.bytes))}"
    return f"The runtime's part is corrected by {amount} from the newest {correction.runs}."
