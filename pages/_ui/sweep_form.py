"""The sweep form: a preset or own axes around the Recipe being edited in, one SweepPlan out.

This file does not know which of its configurations can run or how long they take (``sweep_panel.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from mcp_core.errors import InputError
from mcp_core.goal import FidelityLimits
from mcp_core.hardware import Hardware
from mcp_core.models.shapes import SHAPES
from mcp_core.recipe import Recipe
from mcp_core.schemes import SCHEMES
from mcp_core.sweep_plan import Axes, SweepPlan
from mcp_core.sweep_presets import PLANS, sweep_preset
from mcp_core.workload import Workload
from pages._ui import format as fmt
from pages._ui.recipe_options import choices_of

__all__ = ["sweep_form"]

_OWN = "own axes"
_OBJECTIVES = {"throughput": "highest throughput", "latency": "lowest latency", "cost": "lowest cost"}


def sweep_form(recipe: Recipe, workload: Workload, hardware: Hardware) -> SweepPlan:
    """Draw it and return the plan. Raises InputError naming what does not go together."""
    name = st.segmented_control(
        "Sweep",
        [_OWN, *PLANS],
        default=_OWN,
        required=True,
        help="Own axes vary the Recipe of the Recipe page under the workload above.",
        key="sweep-preset",
    )
    if name in PLANS:
        st.caption((PLANS[str(name)].__doc__ or "").strip())
        return sweep_preset(str(name), hardware)
    document = {
        "base": recipe.model_dump(mode="json"),
        "axes": _axes(recipe),
        "workload": workload.model_dump(mode="json"),
        **_stages(),
    }
    return SweepPlan.from_dict(document)


def _axes(recipe: Recipe) -> dict[str, Any]:
    now = recipe
    left, right = st.columns(2)
    with left:
        schemes = _choose("scheme", "Schemes", list(SCHEMES), now.quantization.scheme)
        batching = _choose("batching", "Batching modes", list(choices_of("batching.mode")), now.batching.mode)
        kinds = _choose("kv", "KV caches", list(choices_of("kv.kind")), now.kv.kind)
        lengths = ["1024", "2048", "4096", "8192"]
        contexts = _choose("max_context", "Max contexts, tokens", lengths, _context(now), new=True)
    with right:
        names = [name for name in choices_of("engine") if name != "endpoint"]
        engines = _choose("engine", "Engines", names, now.engine)
        dtypes = _choose("dtype", "Dtypes", list(choices_of("dtype")), now.dtype)
        attention = _choose("attention", "Attention", list(choices_of("attention")), now.attention)
        compiled = _choose("compile", "Decode steps", list(choices_of("compile")), now.compile)
    own = "Checkpoints besides the Recipe's: a shape, or a Hub id (owner/name)"
    models = _choose("model", own, list(SHAPES), fmt.model_name(now), new=True)
    return {
        "scheme": schemes,
        "batching": batching,
        "kv": kinds,
        "max_context": [_whole(each) for each in contexts],
        "engine": engines,
        "dtype": dtypes,
        "attention": attention,
        "compile": compiled,
        "model": [recipe.model.model_dump(mode="json"), *map(_model, models)] if models else [],
    }


def _context(recipe: Recipe) -> str:
    return "the model's own" if recipe.kv.max_context is None else f"{recipe.kv.max_context:,}"


def _choose(axis: str, label: str, options: Sequence[str], now: str, *, new: bool = False) -> list[str]:
    """The chosen values; none leaves ``now``, the Recipe's own."""
    return st.multiselect(
        label,
        options,
        accept_new_options=new,
        select_all=False,
        format_func=_in_words,
        placeholder=f"As in the Recipe: {_in_words(now)}",
        help=Axes.model_fields[axis].description,
        key=f"sweep-{axis}",
    )


def _in_words(value: str) -> str:
    return fmt.scheme_title(value) if value == "none" else value


def _stages() -> dict[str, Any]:
    objective = st.selectbox(
        "Best is", list(_OBJECTIVES), format_func=_OBJECTIVES.__getitem__, help=_help("goal"), key="sweep-objective"
    )
    judged, limit = st.columns(2, vertical_alignment="bottom")
    with judged:
        fidelity = st.toggle("Judge fidelity", help=_help("fidelity"), key="sweep-fidelity")
    with limit:
        floors = st.number_input(
            "KL at most, times the noise floor",
            0.1,
            None,
            None,
            5.0,
            placeholder="no limit",
            help=FidelityLimits.model_fields["kl_over_floor_max"].description,
            key="sweep-kl-over-floor-max",
        )
    first, second, third, fourth = st.columns(4)
    with first:
        probe = _seconds("Probe, s", "probe_s", 30.0, least=0.0)
    with second:
        keep = st.number_input("Keep", 1, 2000, 8, help=_help("keep"), key="sweep-keep")
    with third:
        measure = _seconds("Measure, s", "capacity_s", 120.0)
    with fourth:
        confirm = _seconds("Confirm, s", "confirm_s", 60.0)
    return {
        "goal": {"objective": objective, "fidelity": {"kl_over_floor_max": floors}},
        "fidelity": fidelity,
        "probe_s": probe,
        "keep": int(keep),
        "capacity_s": measure,
        "confirm_s": confirm,
    }


def _seconds(label: str, field: str, value: float, *, least: float = 1.0) -> float:
    return float(st.number_input(label, least, 3600.0, value, 5.0, help=_help(field), key=f"sweep-{field}"))


def _help(field: str) -> str | None:
    return SweepPlan.model_fields[field].description


def _whole(text: str) -> int:
    if not text.strip().isdecimal():
        raise InputError(f'"{text}" is no number of tokens.', "Type a whole number, such as 2048.")
    return int(text)


def _model(text: str) -> dict[str, str]:
    return {"source": "shape" if text in SHAPES else "hub", "id": text}
