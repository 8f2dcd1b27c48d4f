"""Attainment on records whose answer can be counted by hand."""

from __future__ import annotations

import math

import pytest

from mcp_core.evaluation.attainment import attain
from mcp_core.evaluation.metrics import summarize
from mcp_core.evaluation.request_samples import RequestSamples
from mcp_core.goal import Goal
from mcp_core.results import Measurement, Quantiles, RequestRecord


def _record(index: int, ttft_ms: float, tpot_ms: float, tokens: int = 5, status: str = "ok") -> RequestRecord:
    arrivals = tuple(ttft_ms + tpot_ms * number for number in range(tokens))
    return RequestRecord(
        index=index,
        status=status,
        sent_ms=0,
        ttft_ms=ttft_ms,
        e2e_ms=arrivals[-1],
        chunk_ms=arrivals,
        chunk_tokens=(1,) * tokens,
        output_tokens=tokens,
    )


def _measured(records: list[RequestRecord], duration_s: float = 10.0) -> Measurement:
    return summarize(records, duration_s)


SLO = Goal.from_dict({"slo": {"ttft_ms": {"p90": 100}, "tpot_ms": {"p90": 10}}}).slo


def test_goodput_counts_requests_that_meet_every_limit():
    good = [_record(i, 90, 9) for i in range(6)]
    slow_start, slow_tokens = _record(6, 110, 9), _record(7, 90, 11)
    failed = _record(8, 1, 1, status="failed")
    cancelled = _record(9, 1, 1, status="cancelled")
    records = [*good, slow_start, slow_tokens, failed, cancelled]
    found = attain(SLO, _measured(records), records)
    assert found.attainment == pytest.approx(6 / 9)
    assert found.goodput_s == pytest.approx(0.6)


def test_a_broken_limit_says_figure_and_limit():
    records = [_record(i, 812, 9) for i in range(20)]
    found = attain(SLO, _measured(records), records)
    assert not found.meets
    assert [each.text for each in found.broken] == ["p90 TTFT 812 > 100 ms"]
    assert [each.text for each in found.judged if each.holds] == ["p90 TPOT 9 ≤ 10 ms"]


@pytest.mark.parametrize(
    ("p90", "text"),
    [(100.4, "p90 TTFT 100.4 > 100 ms"), (99.6, "p90 TTFT 99.6 ≤ 100 ms"), (100.0, "p90 TTFT 100 ≤ 100 ms")],
)
def test_a_figure_beside_its_limit_never_reads_alike(p90, text):
    measured = _measured([_record(0, 90, 9)]).model_copy(update={"ttft_ms": Quantiles(p90=p90, n=300)})
    assert attain(SLO, measured).judged[0].text == text


def test_a_percentile_of_too_few_requests_was_not_measured():
    slo = Goal.from_dict({"slo": {"ttft_ms": {"p95": 100}}}).slo
    records = [_record(i, 1, 1) for i in range(199)]
    found = attain(slo, _measured(records), records)
    assert found.broken[0].figure is None
    assert found.broken[0].text == "p95 TTFT not measured: it takes 200 requests, this Run has 199"
    assert attain(slo, _measured([*records, _record(199, 1, 1)])).meets


def test_nan_is_no_figure():
    measured = _measured([_record(0, 1, 1)]).model_copy(update={"ttft_ms": Quantiles(p90=math.nan, n=300)})
    assert attain(SLO, measured).broken[0].text == "p90 TTFT not measured"


def test_without_records_there_is_no_goodput():
    found = attain(SLO, _measured([_record(0, 1, 1)]))
    assert (found.attainment, found.goodput_s, found.meets) == (None, None, True)


def test_a_reply_of_one_token_breaks_no_limit_between_tokens():
    records = [_record(0, 90, 0, tokens=1)]
    assert attain(SLO, _measured(records), records).attainment == 1.0


def _with_gaps(*arrivals_ms: float) -> RequestRecord:
    ones = (1,) * len(arrivals_ms)
    return RequestRecord(index=0, status="ok", sent_ms=0, chunk_ms=arrivals_ms, chunk_tokens=ones)


@pytest.mark.parametrize(("statistic", "holds"), [("p50", True), ("mean", True), ("p99", False)])
def test_gaps_are_judged_at_the_percentile_of_the_limit(statistic, holds):
    slo = Goal.from_dict({"slo": {"itl_ms": {statistic: 5}}}).slo
    record = _with_gaps(0, 1, 2, 12)  # gaps 1, 1, 10: median 1, mean 4, p99 9.8
    assert attain(slo, _measured([record]), [record]).attainment == (1.0 if holds else 0.0)


def test_samples_survive_packing():
    records = [_record(i, 10 + i, 2) for i in range(5)]
    samples = RequestSamples.of(records)
    again = RequestSamples.unpack(samples.pack())
    assert again.ok("ttft_ms").tolist() == [10, 11, 12, 13, 14]
    assert len(RequestSamples.unpack(RequestSamples.of(()).pack())) == 0
