"""The Goal form: workload, load, limits, hardware and price in, one Goal out.

This file does not know how a Goal is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from mcp_core.errors import InputError
from mcp_core.goal import Goal, Metric
from mcp_core.goal_presets import GOALS, goal_preset
from mcp_core.workload import WORKLOADS, Workload
from pages._ui import format as fmt
from pages._ui import further_limits, links, session

__all__ = ["goal_form", "goal_of_link", "keep_link"]

_MOST_MEASURED = "the most measured"
_OWN = "own limits"
_LOADS = {"capacity": "as many as it can", "users": "users at once", "rate_s": "requests per second"}
_FIDELITY = {
    "": "no limit",
    "kl_over_floor_max": "KL, times the noise floor",
    "kl_max": "KL, nats",
    "top1_min": "top-1 agreement, at least",
}
_FIDELITY_START = {"kl_over_floor_max": 10.0, "kl_max": 0.02, "top1_min": 0.98}
_OBJECTIVES = {"cost": "cost per token", "throughput": "throughput", "latency": "latency (E2E p50)"}
_WORDS: dict[Metric, str] = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2e_ms": "E2E"}
_STATISTICS = ("p50", "p90", "p95", "p99", "mean")


def goal_of_link(instead: str) -> bool:
    """A Goal that a link brought replaces the one of this visit.

    False where it is none: then a line says why, and ``instead`` what the page does without it.
    """
    text = st.query_params.get("goal")
    if not text or text == session.goal_link():
        return True
    try:
        session.set_goal(Goal.from_json(text))
    except InputError as error:
        links.not_found(f"{error.message} {error.hint}", instead)
        return False
    session.set_goal_link(text)
    session.redraw_goal()
    return True


def keep_link(goal: Goal) -> None:
    """Write the Goal into the link."""
    text = goal.model_dump_json(exclude_defaults=True)
    session.set_goal_link(text)
    st.query_params["goal"] = text


def goal_form(models: Sequence[str]) -> Goal:
    """Draw every field and return the Goal; ``models`` are those that were measured. Raises GoalError.

    Limits without a field are kept as they are, listed below the fields until they are dropped.
    """
    now, further = session.goal(), _further()
    _presets()
    document: dict[str, Any] = {"name": now.name} | _models(now, models)
    left, right = st.columns(2)
    with left:
        document |= _workload(now)
    with right, st.container(horizontal=True):
        document |= _load(now)
    document |= _objective(now)
    slo = _slo(now, further, ("ttft_ms", "tpot_ms"))
    with st.expander("More limits", expanded=_has_more(now)):
        slo |= _slo(now, further, ("itl_ms", "e2e_ms"))
        left, right = st.columns(2)
        with left:
            document |= {"fidelity": _fidelity(now, further), "failures_max": _failures(now)}
        with right:
            document |= _means(now)
    document |= {"slo": slo, "device": further.device}
    further_limits.draw(further)
    goal = Goal.from_dict({name: value for name, value in document.items() if value is not None})
    session.set_goal(goal)
    return goal


def _further() -> Goal:
    """What the fields do not show, as it was when they were drawn anew."""
    further = session.goal_further()
    if further is None:
        further = further_limits.beyond_the_form(session.goal())
        session.set_goal_further(further)
    return further


def _presets() -> None:
    with st.popover("Published limits", icon=":material/bookmark:"):
        for name in GOALS:
            if st.button(name, help=(GOALS[name].__doc__ or "").strip(), key=f"goal-preset-{name}"):
                session.set_goal(goal_preset(name))
                session.redraw_goal()
                st.rerun()
        st.caption("MLPerf Inference's limits for its Server scenario: a place to begin, not a standard.")


def _key(name: str) -> str:
    return f"goal-{name}-{session.goal_revision()}"


def _has_more(now: Goal) -> bool:
    """Whether one of the limits that are folded away is set."""
    slo, usual = now.slo, Goal()
    folded = (slo.itl_ms != usual.slo.itl_ms, slo.e2e_ms != usual.slo.e2e_ms, now.fidelity != usual.fidelity)
    means = (now.gpus, now.memory_bytes, now.energy_price)
    return any(folded) or any(each is not None for each in means) or now.failures_max != usual.failures_max


def _models(now: Goal, models: Sequence[str]) -> dict[str, Any]:
    """Which models may answer; there is nothing to choose from one, unless a link names another."""
    options = sorted({*models, *now.models})
    if len(options) < 2:
        return {"models": now.models}
    chosen = st.multiselect(
        "Models",
        options,
        default=now.models,
        key=_key("models"),
        placeholder=_MOST_MEASURED,
        help="Checkpoints that may answer. One model's, unless a smaller model is an answer for you.",
    )
    return {"models": chosen}


def _workload(now: Goal) -> dict[str, Any]:
    names = [_MOST_MEASURED, *WORKLOADS]
    own = now.workload if isinstance(now.workload, Workload) else None
    names += [own.name] if own and own.name not in names else []
    current = own.name if own else str(now.workload or _MOST_MEASURED)
    chosen = st.selectbox(
        "Workload",
        names,
        index=names.index(current),
        format_func=lambda name: f"{name}, as the link has it" if own and name == own.name else name,
        key=_key("workload"),
        help="What is asked. Only Runs under the same workload count, at whatever load they were made.",
    )
    if chosen == _MOST_MEASURED:
        return {}
    return {"workload": own.model_dump(mode="json") if own and chosen == own.name else chosen}


def _load(now: Goal) -> dict[str, Any]:
    kind = "users" if now.users is not None else "rate_s" if now.rate_s is not None else "capacity"
    chosen = st.selectbox(
        "Load",
        list(_LOADS),
        index=list(_LOADS).index(kind),
        format_func=_LOADS.get,
        key=_key("load"),
        help="Users each wait for their reply before they ask again; a rate waits for nobody.",
    )
    if chosen == "users":
        return {"users": int(_number("Users", "users", now.users or 8, 1, step=1, required=True) or 1)}
    if chosen == "rate_s":
        return {"rate_s": _number("Requests per second", "rate_s", now.rate_s or 1.0, 0.01, required=True)}
    return {}


def _fidelity(now: Goal, further: Goal) -> dict[str, float]:
    """The limit of the field, and those beyond it."""
    kept = further.fidelity.model_dump(exclude_none=True)
    limits = {name: each for name, each in now.fidelity.model_dump(exclude_none=True).items() if name not in kept}
    kinds = [name for name in _FIDELITY if name not in kept]
    current = next(iter(limits), "")
    chosen = st.selectbox(
        "Fidelity limit",
        kinds,
        index=kinds.index(current),
        format_func=_FIDELITY.get,
        key=_key("fidelity"),
        help="Against the checkpoint in its native dtype on the same tokens. A configuration that was not judged "
        "is refused as not measured.",
    )
    if not chosen:
        return kept
    value = _number(
        "Limit", f"fidelity-{chosen}", limits.get(chosen) or _FIDELITY_START[chosen], 0.0001, required=True
    )
    return kept | {chosen: value or 0.0}


def _objective(now: Goal) -> dict[str, Any]:
    left, right = st.columns(2)
    chosen = left.selectbox(
        "Decided by",
        list(_OBJECTIVES),
        index=list(_OBJECTIVES).index(now.objective),
        format_func=_OBJECTIVES.get,
        key=_key("objective"),
        help="What orders configurations that meet every limit.",
    )
    with right:
        price = _number(
            "Price per hour",
            "price",
            now.price_per_hour,
            0.0,
            help_text="Of one GPU, or of the machine where there is none; any currency.",
            empty="not known",
        )
    return {"objective": chosen, "price_per_hour": price}


def _means(now: Goal) -> dict[str, Any]:
    gpus = _number("GPUs", "gpus", now.gpus, 0, step=1, help_text="At most; 0 allows CPU configurations only.")
    memory_gb = _number(
        "Memory (GB)", "memory", (now.memory_bytes or 0) / 1e9 or None, 0.01, help_text="A worker's peak, at most."
    )
    energy = _number(
        "Price per kWh",
        "energy",
        now.energy_price,
        0.0,
        help_text="Added where energy was measured.",
        empty="not known",
    )
    return {
        "gpus": None if gpus is None else int(gpus),
        "memory_bytes": None if memory_gb is None else memory_gb * 1e9,
        "energy_price": energy,
    }


def _slo(now: Goal, further: Goal, metrics: Sequence[Metric]) -> dict[str, dict[str, float]]:
    """The limit of each latency's field, and those beyond it."""
    found: dict[str, dict[str, float]] = {}
    for column, metric in zip(st.columns(len(metrics)), metrics, strict=True):
        kept = getattr(further.slo, metric).model_dump(exclude_none=True)
        given = {
            name: each
            for name, each in getattr(now.slo, metric).model_dump(exclude_none=True).items()
            if name not in kept
        }
        free = [name for name in _STATISTICS if name not in kept]
        usual = "p95" if "p95" in free else free[-1]
        statistic, limit = next(reversed(given.items()), (usual, None))
        with column:
            left, right = st.columns([3, 2])
            with left:
                value = _number(
                    f"{_WORDS[metric]} (ms)", metric, limit, 0.001, help_text=fmt.definition(metric) or ""
                )
            chosen = right.selectbox(
                f"{_WORDS[metric]} percentile",
                free,
                index=free.index(statistic),
                key=_key(f"{metric}-of"),
                help="Of the requests: p95 TTFT is what 95 % of them stay within. p95 takes Runs of 200 requests, "
                "p99 of 1,000.",
            )
        found[metric] = kept | ({chosen: value} if value is not None else {})
    return found


def _failures(now: Goal) -> float:
    percent = _number(
        "Failed requests (%)",
        "failures",
        now.failures_max * 100,
        0.0,
        help_text="At most this share may fail.",
        required=True,
    )
    return min(99.0, percent or 0.0) / 100


def _number(
    label: str,
    name: str,
    value: float | None,
    least: float,
    *,
    step: int | None = None,
    help_text: str | None = None,
    empty: str = "no limit",
    required: bool = False,
) -> float | None:
    """A field that can be emptied, unless it is required: Streamlit puts a default back where one is emptied."""
    whole = step is not None
    # A link may bring less than one can type.
    least = least if value is None else min(least, value)
    given = None if value is None else int(value) if whole else float(value)
    if not required:
        session.begin_with(_key(name), given)
    return st.number_input(
        label,
        min_value=int(least) if whole else float(least),
        value=given if required else None,
        step=step,
        placeholder=empty,
        help=help_text,
        key=_key(name),
        format=None if whole else "%g",
    )
