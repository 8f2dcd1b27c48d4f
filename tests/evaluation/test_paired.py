from __future__ import annotations

import numpy as np
import pytest

from mcp_core.evaluation.paired import mcnemar_p, mean_difference, ratio_of_sums


def test_the_ratio_of_equal_lengths_is_one_without_width() -> None:
    ratio = ratio_of_sums([10, 20, 30], [10, 20, 30])
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == (1, 1, 1)


def test_one_pair_has_no_interval_and_no_reference_no_ratio() -> None:
    ratio = ratio_of_sums([10], [12])
    assert ratio is not None
    assert (ratio.value, ratio.low) == (1.2, None)
    assert ratio_of_sums([0, 0], [3, 4]) is None


def test_the_interval_covers_the_planted_ratio_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        below = draw.gamma(4, 25, size=40)
        ratio = ratio_of_sums(below, below * 1.1 * draw.lognormal(-0.02, 0.2, size=40))
        assert ratio is not None
        assert ratio.low is not None
        assert ratio.high is not None
        covered += ratio.low <= 1.1 <= ratio.high
    assert 178 <= covered <= 199  # 95 % of 200 is 190


def test_the_difference_of_means() -> None:
    difference = mean_difference([1, 1, 0, 0], [1, 0, 0, 0])
    assert difference.value == -0.25
    assert difference.low is not None
    assert difference.low < difference.value <= 0


@pytest.mark.parametrize(
    ("lost", "won", "p"), [(0, 0, 1), (3, 3, 1), (5, 0, 2 / 32), (0, 10, 2 / 1024), (8, 1, 20 / 512)]
)
def test_mcnemar_is_the_binomial_by_hand(lost: int, won: int, p: float) -> None:
    assert mcnemar_p(lost, won) == pytest.approx(p)
