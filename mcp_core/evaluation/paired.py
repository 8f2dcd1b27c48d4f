"""Statistics of pairs: the same prompts or items through a reference and a candidate.

This file does not know what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Interval", "mcnemar_p", "mean_difference", "ratio_of_sums"]

RESAMPLES = 4000
# Percentiles of a bootstrap sample: a 95 % interval.
_ENDS = (2.5, 97.5)

Numbers = Sequence[float]
Array = npt.NDArray[np.float64]


class Interval(BaseModel):
    """An estimate with its 95 % interval by bootstrap over pairs (Efron's percentiles)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float | None = Field(default=None, description="2.5th percentile; null with fewer than two pairs.")
    high: float | None = Field(default=None, description="97.5th percentile.")


def ratio_of_sums(reference: Numbers, candidate: Numbers) -> Interval | None:
    """sum(candidate) / sum(reference), pairs drawn together; None when the reference sums to nothing."""
    below, above = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if below.sum() <= 0:
        return None
    value = float(above.sum() / below.sum())
    drawn = _draws(len(below))
    if drawn is None:
        return Interval(value=value)
    sums = below[drawn].sum(axis=1)
    return _interval(value, above[drawn].sum(axis=1)[sums > 0] / sums[sums > 0])


def mean_difference(reference: Numbers, candidate: Numbers) -> Interval:
    """mean(candidate - reference) over pairs. There is at least one."""
    differences = np.asarray(candidate, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    drawn = _draws(len(differences))
    value = float(differences.mean())
    return Interval(value=value) if drawn is None else _interval(value, differences[drawn].mean(axis=1))


def mcnemar_p(lost: int, won: int) -> float:
    """Probability of so uneven a split of flips when either way is as likely (exact two-sided McNemar test)."""
    flips = lost + won
    tail: float = sum(math.comb(flips, each) for each in range(min(lost, won) + 1)) / 2**flips
    return min(1.0, 2 * tail)


def _draws(pairs: int) -> npt.NDArray[np.int64] | None:
    """Indexes of resampled pairs, the same for the same count."""
    if pairs < 2:
        return None
    return np.random.default_rng(0).integers(0, pairs, size=(RESAMPLES, pairs))


def _interval(value: float, sample: Array) -> Interval:
    low, high = np.percentile(sample, _ENDS)
    return Interval(value=value, low=float(low), high=float(high))
