"""The Workload form: a preset or own numbers in, one Workload out, with what it will take.

This file does not know how a Workload is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from mcp_core.recipe import Recipe
from mcp_core.results import Run
from mcp_core.workload import WORKLOADS, Lengths, Workload, workload_preset
from pages._ui import format as fmt
from pages._ui import session

__all__ = ["Expectation", "expectation", "workload_form"]

_CUSTOM = "custom"


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a Workload will take, warm-up included; ``duration_s`` None when no speed is known."""

    prompt_tokens: int
    output_tokens: int
    duration_s: float | None

    def in_words(self) -> str:
        """ "About 1,150 prompt and 580 reply tokens in all; about 20 s at the last measured speed."."""
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
        key="workload-name",
    )
    workload = _own(now) if name == _CUSTOM else workload_preset(str(name))
    if name != _CUSTOM:
        st.caption((WORKLOADS[str(name)].__doc__ or "").strip())
    session.set_workload(workload)
    return workload


def _own(now: Workload) -> Workload:
    left, middle, right = st.columns(3)
    with left:
        requests = _number("Requests", "requests", now.requests, 1)
        prompt_min = _length("Prompt tokens, least", now.prompt_tokens.min, "prompt-min")
        output_min = _length("Reply tokens, least", now.output_tokens.min, "output-min")
    with middle:
        concurrency = _number("Concurrency", "concurrency", now.concurrency, 1)
        prompt_max = _length("Prompt tokens, most", now.prompt_tokens.max, "prompt-max")
        output_max = _length("Reply tokens, most", now.output_tokens.max, "output-max")
    with right:
        warmup = _number("Warm-up requests", "warmup_requests", now.warmup_requests, 0)
        seed = _number("Seed", "seed", now.seed, 0)
    return Workload.from_dict(
        {
            "name": _CUSTOM,
            "requests": requests,
            "concurrency": concurrency,
            "warmup_requests": warmup,
            "seed": seed,
            "prompt_tokens": {"min": prompt_min, "max": prompt_max},
            "output_tokens": {"min": output_min, "max": output_max},
        }
    )


def _number(label: str, field: str, value: int, least: int) -> int:
    number = st.number_input(
        label,
        min_value=least,
        value=value,
        step=1,
        help=Workload.model_fields[field].description,
        key=f"workload-{field}",
    )
    return value if number is None else int(number)


def _length(label: str, value: int, key: str) -> int:
    number = st.number_input(
        label, min_value=1, value=value, step=1, help="Lengths are drawn uniformly.", key=f"workload-{key}"
    )
    return value if number is None else int(number)


def expectation(workload: Workload, recipe: Recipe | None, runs: Sequence[Run]) -> Expectation:
    """Mean lengths times requests; time from the newest good Run of the same Recipe, None without one.

    A Run at another concurrency tells only roughly, so the nearest concurrency is taken.
    """
    requests = workload.requests + workload.warmup_requests
    prompt, output = (
        round(requests * _mean(lengths)) for lengths in (workload.prompt_tokens, workload.output_tokens)
    )
    known = [run for run in runs if recipe is not None and run.recipe.load_key == recipe.load_key and _speed(run)]
    nearest = min(known, key=lambda run: abs(run.workload.concurrency - workload.concurrency), default=None)
    speed = _speed(nearest) if nearest is not None else None
    return Expectation(prompt, output, output / speed if speed else None)


def _mean(lengths: Lengths) -> float:
    return (lengths.min + lengths.max) / 2


def _speed(run: Run) -> float | None:
    return run.measurement.output_tok_s if run.status == "ok" and run.measurement is not None else None
