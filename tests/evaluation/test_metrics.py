from __future__ import annotations

import random

import pytest

from mcp_core.evaluation.metrics import DEFINITIONS, itl_ms, quantiles, summarize, tpot_ms
from mcp_core.results import Failure, Measurement


def test_three_records_computed_by_hand(record):
    # TPOT (70-10)/3 = 20, (65-25)/4 = 10, one token: none. Gaps 20 20 20, 10 10 10 10, none.
    records = [
        record(0, arrivals=(10.0, 30.0, 50.0, 70.0)),
        record(1, arrivals=(25.0, 35.0, 45.0, 55.0, 65.0)),
        record(2, arrivals=(40.0,)),
    ]
    measured = summarize(records, 2.0)
    assert (measured.ttft_ms.mean, measured.ttft_ms.p50, measured.ttft_ms.max) == (25.0, 25.0, 40.0)
    assert measured.ttft_ms.p90 == pytest.approx(37.0)  # 25 + 0.8 * (40 - 25)
    assert (measured.tpot_ms.mean, measured.tpot_ms.p50, measured.tpot_ms.n) == (15.0, 15.0, 2)
    assert measured.itl_ms.mean == pytest.approx((3 * 20 + 4 * 10) / 7)
    assert (measured.itl_ms.p50, measured.itl_ms.n) == (10.0, 2)
    assert (measured.e2e_ms.p50, measured.e2e_ms.n) == (65.0, 3)
    assert (measured.prompt_tokens, measured.output_tokens) == (24, 10)
    assert (measured.output_tok_s, measured.total_tok_s, measured.requests_s) == (5.0, 17.0, 1.5)


def test_tpot_counts_tokens_of_usage_not_chunks(record):
    # Two tokens in each later chunk: 5 tokens in 3 chunks.
    reply = record(arrivals=(10.0, 30.0, 50.0), chunk_tokens=(1, 2, 2), output_tokens=5)
    assert tpot_ms(reply) == 10.0
    assert itl_ms(reply) == (20.0, 20.0)


def test_chunks_without_tokens_make_no_gap(record):
    reply = record(arrivals=(10.0, 15.0, 30.0), chunk_tokens=(1, 0, 1), output_tokens=2)
    assert itl_ms(reply) == (20.0,)


def test_failed_and_cancelled_never_enter_a_figure(record):
    bad = Failure(kind="error", message="planted")
    good = [record(index, arrivals=(10.0, 20.0)) for index in range(3)]
    noise = [
        record(3, status="failed", arrivals=(9e6, 9.1e6), failure=bad),
        record(4, status="cancelled", arrivals=(9e6,), e2e_ms=None),
        record(5, status="failed", arrivals=(), failure=bad),
    ]
    alone, together = summarize(good, 1.0), summarize(good + noise, 1.0)
    assert (together.requests, together.completed, together.failed, together.cancelled) == (6, 3, 2, 1)
    counts = {"requests", "failed", "cancelled"}
    assert together.model_dump(exclude=counts) == alone.model_dump(exclude=counts)


@pytest.mark.parametrize(("n", "p95", "p99"), [(199, False, False), (200, True, False), (1000, True, True)])
def test_high_percentiles_need_requests(n, p95, p99):
    result = quantiles([float(value) for value in range(n)], requests=n)
    assert (result.p95 is not None, result.p99 is not None) == (p95, p99)
    assert result.p90 == pytest.approx(0.9 * (n - 1))


def test_many_gaps_of_few_requests_are_still_few(record):
    long = record(arrivals=tuple(float(at) for at in range(5000)))
    assert summarize([long], 1.0).itl_ms.p95 is None
    assert summarize([long], 1.0).itl_ms.n == 1


def test_unmeasured_is_none_not_zero(record):
    nothing = summarize([], 0.0)
    assert nothing.output_tok_s is None
    assert nothing.requests_s is None
    assert nothing.ttft_ms.p50 is None
    assert nothing.ttft_ms.n == 0
    uncounted = summarize([record(prompt_tokens=None)], 1.0)
    assert uncounted.total_tok_s is None
    assert uncounted.output_tok_s == 3.0


def test_output_tokens_fall_back_to_chunks(record):
    assert summarize([record(output_tokens=None)], 1.0).output_tokens == 3


@pytest.mark.parametrize("seed", range(20))
def test_order_of_records_and_shift_of_time_change_nothing(seed, record):
    draw = random.Random(seed)
    records = []
    for index in range(draw.randint(2, 40)):
        arrivals, at = [], 0.0
        for _ in range(draw.randint(1, 20)):
            at += draw.uniform(0.1, 50.0)
            arrivals.append(at)
        records.append(record(index, sent_ms=draw.uniform(0, 1e4), arrivals=tuple(arrivals)))
    shuffled = [each.model_copy(update={"sent_ms": each.sent_ms + 1e5}) for each in records]
    draw.shuffle(shuffled)
    one, other = summarize(records, 3.0), summarize(shuffled, 3.0)
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        assert getattr(one, name).model_dump() == pytest.approx(getattr(other, name).model_dump())
    # A reply's time is its first token plus its gaps, so totals agree: E2E = TTFT + TPOT * (n - 1).
    spent = sum(each.e2e_ms - each.ttft_ms for each in records)
    assert sum(sum(itl_ms(each)) for each in records) == pytest.approx(spent)
    assert sum((tpot_ms(each) or 0.0) * (len(each.chunk_ms) - 1) for each in records) == pytest.approx(spent)


def test_every_definition_explains_a_field():
    assert set(DEFINITIONS) - {"p95"} <= set(Measurement.model_fields)
    assert all(text.endswith(".") and len(text) > 30 for text in DEFINITIONS.values())
