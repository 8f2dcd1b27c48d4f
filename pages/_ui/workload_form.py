"""The Workload form: a preset or own numbers in, one Workload out, with what it will take.

This file does not know the fields of a Workload (``workload_fields.py``) or how it is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from mcp_core.recipe import Recipe
from mcp_core.results import Run
from mcp_core.workload import WORKLOADS, Workload, workload_preset
from pages._ui import format as fmt
from pages._ui import session, workload_fields

__all__ = ["Expectation", "expectation", "workload_form"]

_CUSTOM = "custom"


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a Workload will take, warm-up included; ``duration_s`` None when no speed is known.

    ``ends_s`` is when nothing more is sent, where time ends it: how many tokens that makes is not known.
    """

    prompt_tokens: int
    output_tokens: int
    duration_s: float | None
    ends_s: float | None = None

    def in_words(self) -> str:
        """ "About 1,150 prompt and 580 reply tokens in all; about 20 s at the last measured speed."."""
        if self.ends_s is not None:
            return f"{fmt.duration(self.ends_s)}, and until what then runs has ended."
        known = f"{fmt.about(self.duration_s)} at the last measured speed"
        time = known if self.duration_s else "how long is not known yet for this Recipe"
        return f"About {self.prompt_tokens:,} prompt and {self.output_tokens:,} reply tokens in all; {time}."


def workload_form() -> Workload:
    """Draw the presets and every field, and return the chosen Workload. Raises WorkloadError naming the field."""
    now = session.workload()
    names = [*WORKLOADS, _CUSTOM]
    name = st.segmented_control(
        "Workload",
        names,
        default=now.name if now.name in names else _CUSTOM,
        required=True,
        format_func=lambda each: "own numbers" if each == _CUSTOM else each,
        help="short-chat and burst are smoke tests: too small to decide anything.",
        key="workload-name",
    )
    if name == _CUSTOM:
        workload = Workload.from_dict({"name": _CUSTOM} | workload_fields.draw(now))
    else:
        workload = workload_preset(str(name))
    if name != _CUSTOM:
        st.caption((WORKLOADS[str(name)].__doc__ or "").strip())
    session.set_workload(workload)
    return workload


def expectation(workload: Workload, recipe: Recipe | None, runs: Sequence[Run]) -> Expectation:
    """Mean lengths times requests; time from the newest good Run of the same Recipe, None without one.

    A Run at another load tells only roughly, so the nearest is taken; arrivals take their time whatever the speed.
    """
    requests = workload.requests + workload.warmup_requests
    prompt, output = round(requests * workload.mean_prompt), round(requests * workload.output_tokens.mean)
    known = [run for run in runs if recipe is not None and run.recipe.load_key == recipe.load_key and _speed(run)]
    nearest = min(known, key=lambda run: _distance(run.workload, workload), default=None)
    speed = _speed(nearest) if nearest is not None else None
    took_s = output / speed if speed else None
    if workload.is_open and workload.load:
        took_s = max(took_s or 0.0, workload.requests / workload.load)
    return Expectation(prompt, output, took_s, workload.duration_s)


def _distance(one: Workload, other: Workload) -> tuple[bool, float]:
    return one.load_kind != other.load_kind, abs((one.load or 0) - (other.load or 0))


def _speed(run: Run) -> float | None:
    return run.measurement.output_tok_s if run.status == "ok" and run.measurement is not None else None
