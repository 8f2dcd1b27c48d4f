"""What an experiment found: two ways to compute the same, measured in turn. Frozen values, their statistics.

This file does not know which experiments there are (``experiments.py``) or how they run (``experiment_job.py``).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Agreement", "Comparison", "ExperimentResult", "Ratio", "median_ratio"]

# An interval narrower than this share of certainty is not given.
_CERTAINTY = 0.95


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ratio(_Value):
    """Median of the pairs' time ratios, changed / baseline, with its interval by order statistics."""

    value: float
    low: float = Field(description="Lower end of the interval.")
    high: float = Field(description="Upper end.")
    coverage: float = Field(description="Chance that the interval holds the true median, 0..1.")


class Comparison(_Value):
    """One piece of work, done both ways in turn in one process."""

    what: str = Field(description="The work, as: 16 tokens after 256.")
    baseline: str = Field(description="The usual way, in words.")
    changed: str = Field(description="The other way.")
    baseline_ms: float = Field(description="Median time of the usual way, ms.")
    changed_ms: float = Field(description="Median time of the other way, ms.")
    ratio: Ratio
    repeats: int = Field(description="Pairs behind the medians.")
    baseline_peak_bytes: int | None = Field(
        default=None, description="Weights and the most that the work held above what was there before; bytes."
    )
    changed_peak_bytes: int | None = None


class Agreement(_Value):
    """How far both ways give the same answer: the same greedy tokens, or the same distributions."""

    tokens: int = Field(description="Tokens compared.")
    identical: bool | None = Field(default=None, description="Whether every greedy token was the same.")
    top1: float | None = Field(default=None, description="Share of positions with the same likeliest token, 0..1.")
    kl_mean: float | None = Field(default=None, description="Mean KL(baseline || changed), nats.")


class ExperimentResult(_Value):
    """One experiment on one machine."""

    name: str
    model: str = Field(description="The model's title.")
    device: str
    device_name: str
    dtype: str
    threads: int
    created: datetime
    seconds: float = Field(description="What the whole experiment took.")
    comparisons: tuple[Comparison, ...]
    agreement: Agreement | None = None
    notes: tuple[str, ...] = ()
    random_weights: bool = False


def median_ratio(baseline: Sequence[float], changed: Sequence[float]) -> Ratio:
    """Of pairs measured next to each other; the interval is the narrowest symmetric one of at least 95 %.

    Order statistics (David & Nagaraja, Order Statistics, 7.1): the k-th smallest and k-th largest of n hold the
    median with probability 1 - 2 P(Binomial(n, 1/2) < k). With fewer than six pairs it is the whole range.
    """
    ratios = sorted(after / before for before, after in zip(baseline, changed, strict=True))
    rank = max((k for k in range(1, len(ratios) // 2 + 1) if _coverage(len(ratios), k) >= _CERTAINTY), default=1)
    return Ratio(
        value=statistics.median(ratios),
        low=ratios[rank - 1],
        high=ratios[-rank],
        coverage=_coverage(len(ratios), rank),
    )


def _coverage(pairs: int, rank: int) -> float:
    return 1.0 - sum(math.comb(pairs, below) for below in range(rank)) / float(2 ** (pairs - 1))
