"""Which cells of a sweep go on: one number a Run, larger is better, by the Goal that the sweep is for.

A race, not a decision: what is deployed is decided from all Runs (``decision/recommend.py``). This file does not
know what a cell is or where Runs are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from mcp_core.evaluation.attainment import attain
from mcp_core.goal import Goal
from mcp_core.results import Measurement, RequestRecord, Run

__all__ = ["Score", "median_score", "score", "unit"]

# Compared from left to right.
Score = tuple[float, float]


def score(run: Run, records: Sequence[RequestRecord], goal: Goal | None) -> Score | None:
    """How good a Run is; None for one that cannot win: no figures, too many failures, more memory than allowed.

    With latency limits it is goodput, without them output tokens/s, for objective latency the median TPOT. What is
    equal there is told apart by output tokens/s, under an open load by the median end-to-end latency.
    """
    measured, goal = run.measurement, goal or Goal()
    if run.status != "ok" or measured is None or not measured.completed:
        return None
    if measured.failed > goal.failures_max * measured.requests or _too_large(run, goal):
        return None
    speed = measured.output_tok_s or 0.0
    latency_ms = measured.e2e_ms.p50 or float("inf")
    return _first(measured, records, goal, speed), -latency_ms if run.workload.is_open else speed


def median_score(scores: Sequence[Score | None]) -> Score | None:
    """Of several starts; None where one of them failed or there is none."""
    known = [each for each in scores if each is not None]
    if not known or len(known) < len(scores):
        return None
    return median(each[0] for each in known), median(each[1] for each in known)


def unit(goal: Goal | None) -> str:
    """What the first number of a Score is, in words."""
    if goal is not None and goal.objective == "latency":
        return "ms TPOT p50"
    return "good requests/s" if goal is not None and goal.slo.limits() else "output tok/s"


def _first(measured: Measurement, records: Sequence[RequestRecord], goal: Goal, speed: float) -> float:
    if goal.objective == "latency":
        return -(measured.tpot_ms.p50 or float("inf"))
    if not goal.slo.limits():
        return speed
    return attain(goal.slo, measured, records).goodput_s or 0.0


def _too_large(run: Run, goal: Goal) -> bool:
    peak = run.memory.peak_bytes if run.memory else None
    return goal.memory_bytes is not None and peak is not None and peak > goal.memory_bytes
