from __future__ import annotations

import math

import numpy as np
import pytest

from mcp_core.evaluation.top_k import divergence, same_best


def listed(probabilities: np.ndarray, k: int) -> dict[str, float]:
    best = np.argsort(-probabilities)[:k]
    return {str(each): math.log(probabilities[each]) for each in best}


def test_a_distribution_does_not_differ_from_itself() -> None:
    p = listed(np.random.default_rng(0).dirichlet(np.ones(50)), 20)
    kl, outside = divergence(p, p)
    assert kl == 0
    assert outside == pytest.approx(1 - sum(map(math.exp, p.values())))


def test_the_bins_are_those_that_both_list_and_the_rest() -> None:
    p = {"a": math.log(0.5), "b": math.log(0.3), "c": math.log(0.1)}
    q = {"a": math.log(0.25), "b": math.log(0.6), "d": math.log(0.05)}
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.3 * math.log(0.3 / 0.6) + 0.2 * math.log(0.2 / 0.15)
    assert divergence(p, q) == (pytest.approx(by_hand), pytest.approx(0.2))


@pytest.mark.parametrize("concentration", [0.02, 0.3, 5.0])
@pytest.mark.parametrize("k", [1, 5, 20, 100])
def test_it_never_exceeds_the_full_divergence_and_reaches_it_with_every_token(concentration: float, k: int) -> None:
    draw = np.random.default_rng(1)
    for _ in range(50):
        p, q = draw.dirichlet(np.full(100, concentration), size=2) * (1 - 1e-6) + 1e-8
        full = float((p * np.log(p / q)).sum())
        bound, _ = divergence(listed(p, k), listed(q, k))
        assert bound <= full + 1e-4
        if k == 100:
            assert bound == pytest.approx(full, abs=1e-4)


def test_more_alternatives_tighten_it() -> None:
    draw = np.random.default_rng(2)
    p = draw.dirichlet(np.full(1000, 0.1))
    q = p * np.exp(0.3 * draw.normal(size=1000))
    q /= q.sum()
    bounds = [divergence(listed(p, k), listed(q, k))[0] for k in (1, 5, 20, 80)]
    assert bounds == sorted(bounds)
    assert bounds[-1] > 2 * bounds[0] > 0


def test_of_equally_likely_tokens_the_order_of_the_list_does_not_decide() -> None:
    assert same_best({"a": -1.0, "b": -1.0}, {"b": -1.0, "a": -1.0})
    assert not same_best({"a": -1.0, "b": -1.1}, {"b": -1.0, "a": -1.1})
