"""Costs: what tokens and requests cost at a measured load, from a price per hour and of energy.

    per million output tokens  price_per_hour * GPUs / (output tok/s * 3600) * 10^6 + energy of 10^6 tokens
    per completed request      price_per_hour * GPUs / (requests/s * 3600) + energy of its tokens
    energy of a token          J / 3.6*10^6 * energy_price

A device that idles costs the same: the figures are those of the measured load. This file does not know currencies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from mcp_core.decision.facts import RunFacts
from mcp_core.goal import Goal

__all__ = ["cost_per_million_tokens", "cost_per_request"]

_J_PER_KWH = 3.6e6


def cost_per_million_tokens(goal: Goal, runs: Sequence[RunFacts]) -> float | None:
    """Of output tokens; None without a price, or where the throughput was not measured."""
    million = _time_cost(goal, runs, lambda each: each.output_tok_s)
    return None if million is None else 1e6 * (million + _energy_cost(goal, runs))


def cost_per_request(goal: Goal, runs: Sequence[RunFacts]) -> float | None:
    """Of a completed request."""
    one = _time_cost(goal, runs, lambda each: each.requests_s)
    tokens, requests = _mean(runs, lambda each: each.output_tok_s), _mean(runs, lambda each: each.requests_s)
    if one is None or not tokens or not requests:
        return one
    return one + _energy_cost(goal, runs) * tokens / requests


def _time_cost(goal: Goal, runs: Sequence[RunFacts], rate: Callable[[RunFacts], float | None]) -> float | None:
    """What the time costs in which one of what ``rate`` counts a second is made."""
    per_second = _mean(runs, rate)
    if goal.price_per_hour is None or not per_second:
        return None
    return goal.price_per_hour * max(runs[0].devices, 1) / (per_second * 3600)


def _energy_cost(goal: Goal, runs: Sequence[RunFacts]) -> float:
    """Of one token; nothing where energy has no price or was not measured."""
    joules = _mean(runs, lambda each: each.energy_j_per_token)
    return (joules or 0.0) / _J_PER_KWH * (goal.energy_price or 0.0)


def _mean(runs: Sequence[RunFacts], of: Callable[[RunFacts], float | None]) -> float | None:
    known = [value for each in runs if (value := of(each)) is not None]
    return fmean(known) if known else None
