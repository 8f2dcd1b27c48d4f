"""KL divergence from what two servers list of their next-token distributions: each its own k likeliest tokens.

This file does not know where lists come from, or what is averaged over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["divergence", "same_best"]

# What a list leaves of 1 is known to about this, because log-probabilities are 32-bit floats.
_RESOLUTION = 1e-6


def divergence(reference: Mapping[str, float], candidate: Mapping[str, float]) -> tuple[float, float]:
    """KL(P_reference || Q) in nats over the tokens that both list, all others as one, and P's mass in that one.

    Arguments are token -> natural log-probability. Joining tokens never raises KL (the data-processing inequality;
    Cover & Thomas, Elements of Information Theory, 2.7.1), so it is a lower bound of the full one.
    """
    shared = reference.keys() & candidate.keys()
    terms = [math.exp(reference[each]) * (reference[each] - candidate[each]) for each in shared]
    p_rest = 1 - math.fsum(math.exp(reference[each]) for each in shared)
    q_rest = max(_RESOLUTION, 1 - math.fsum(math.exp(candidate[each]) for each in shared))
    if p_rest > _RESOLUTION:
        terms.append(p_rest * math.log(p_rest / q_rest))
    return max(0.0, math.fsum(terms)), max(0.0, p_rest)


def same_best(reference: Mapping[str, float], candidate: Mapping[str, float]) -> bool:
    """Whether the likeliest token is the same one."""
    return _best(reference) == _best(candidate)


def _best(listed: Mapping[str, float]) -> str:
    # Of equals the first in name order: two servers may list them in either order.
    return min(listed, key=lambda each: (-listed[each], each))
