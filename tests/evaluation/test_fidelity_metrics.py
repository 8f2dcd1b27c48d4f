"""The definitions of fidelity on figures that can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mcp_core.evaluation.fidelity_metrics import DocumentScores, figures, over_floor, strata_of


def document(reference, candidate, kl, same, stratum="prose"):
    arrays = (np.array(each, dtype=np.float64) for each in (reference, candidate, kl))
    return DocumentScores(stratum, *arrays, np.array(same, dtype=bool))


def test_by_hand():
    half, quarter = math.log(2), math.log(4)
    found = figures([document([half, quarter], [quarter, quarter], [0.5, 0.25], [True, False])])
    assert (found.documents, found.tokens) == (1, 2)
    assert found.perplexity.mean == pytest.approx(4)  # 1/4 each
    assert found.reference_perplexity.mean == pytest.approx(math.sqrt(8))  # exp of the mean of ln 2 and ln 4
    assert found.kl.mean == pytest.approx(0.375)
    assert (found.kl.median, found.kl.max) == (0.375, 0.5)
    assert found.top1.mean == 0.5
    assert found.rms_dp.mean == pytest.approx(math.sqrt(0.25**2 / 2))  # one position lost a quarter
    assert found.kl.p99 is None  # two positions say nothing about one in a hundred
    assert found.perplexity.se is None  # nor one document about others


def test_positions_are_weighed_alike_whatever_document_they_are_in():
    long, short = document([1] * 3, [1] * 3, [0] * 3, [1] * 3), document([1], [1], [1], [0])
    found = figures([long, short])
    assert found.kl.mean == 0.25
    assert found.top1.mean == 0.75


def test_p99_from_a_thousand_positions_on():
    kl = np.arange(1000.0)
    (found,) = strata_of([document(kl, kl, kl, kl > 0)])
    assert found.kl.p99 == pytest.approx(np.percentile(kl, 99))


def test_the_standard_error_is_that_of_documents_not_of_positions():
    """Documents differ and their positions do not: many positions make the mean no surer."""
    means = np.random.default_rng(7).normal(1.0, 0.2, size=60)
    found = figures([document([1] * 50, [1] * 50, [mean] * 50, [1] * 50) for mean in means])
    assert found.kl.mean_se == pytest.approx(means.std() / math.sqrt(60), rel=0.08)
    equal = figures([document([1] * 5, [1] * 5, [0.5] * 5, [1] * 5) for _ in range(4)])
    assert equal.kl.mean_se == pytest.approx(0, abs=1e-12)


def test_the_standard_error_of_perplexity_is_of_perplexity():
    nll = np.random.default_rng(3).normal(2.0, 0.1, size=50)
    found = figures([document([2] * 20, [each] * 20, [0] * 20, [1] * 20) for each in nll])
    by_hand = math.exp(nll.mean()) * nll.std() / math.sqrt(50)  # the delta method
    assert found.perplexity.se == pytest.approx(by_hand, rel=0.1)


def test_the_worst_stratum_comes_first():
    rows = strata_of(
        [
            document([1], [1], [0.1], [1], "prose"),
            document([1], [1], [0.9], [1], "json"),
            document([1], [1], [0.3], [1], "prose"),
        ]
    )
    assert [(row.name, row.documents) for row in rows] == [("json", 1), ("prose", 2)]
    assert rows[1].kl.mean == pytest.approx(0.2)


def test_multiples_of_the_floor():
    assert over_floor(0.25, 0.001) == pytest.approx(250)
    assert over_floor(0.0, 0.001) == 0.0
    assert over_floor(0.25, 0.0) is None
