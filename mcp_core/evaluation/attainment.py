"""Attainment: whether a latency limit holds, which share of requests met it, and goodput.

Goodput is recomputed from request records, so that limits can change after a Run. This file does not know what a
Goal asks beside latencies, or which Runs there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mcp_core.evaluation.metrics import MIN_REQUESTS_P95, MIN_REQUESTS_P99, itl_ms, tpot_ms
from mcp_core.goal import Limit, Metric, Slo
from mcp_core.results import Measurement, Quantiles, RequestRecord

__all__ = ["Attainment", "Judged", "attain", "judge", "limit_name", "request_figure"]

_WORDS: dict[Metric, str] = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2e_ms": "E2E"}
_LEAST_REQUESTS = {"p95": MIN_REQUESTS_P95, "p99": MIN_REQUESTS_P99}
_PERCENT = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}


@dataclass(frozen=True, slots=True)
class Judged:
    """One limit and what was measured; ``figure`` None was not."""

    name: str
    figure: float | None
    limit_ms: float
    text: str

    @property
    def holds(self) -> bool:
        """Whether it was measured and is within."""
        return self.figure is not None and self.figure <= self.limit_ms


@dataclass(frozen=True, slots=True)
class Attainment:
    """What an Slo comes to on one Run.

    ``attainment`` is the share of all requests, failed ones included, that met every latency limit and
    ``goodput_s`` how many did a second; both None where there are no request records.
    """

    judged: tuple[Judged, ...]
    attainment: float | None = None
    goodput_s: float | None = None

    @property
    def broken(self) -> tuple[Judged, ...]:
        """Limits that do not hold, or were not measured."""
        return tuple(each for each in self.judged if not each.holds)

    @property
    def meets(self) -> bool:
        """Whether every limit holds."""
        return not self.broken


def attain(slo: Slo, measurement: Measurement, records: Sequence[RequestRecord] = ()) -> Attainment:
    """Judge an Slo on a Run; cancelled requests, which its end cut off, count on neither side."""
    ended = [record for record in records if record.status != "cancelled"]
    judged = tuple(judge(limit, getattr(measurement, limit.metric)) for limit in slo.limits())
    if not ended:
        return Attainment(judged)
    good = sum(record.status == "ok" and _is_good(record, slo) for record in ended)
    duration_s = measurement.duration_s
    return Attainment(judged, good / len(ended), good / duration_s if duration_s > 0 else None)


def judge(limit: Limit, measured: Quantiles) -> Judged:
    """One limit on the percentiles of a Run. A figure that is no number was not measured."""
    figure: float | None = getattr(measured, limit.statistic)
    figure = figure if figure is not None and np.isfinite(figure) else None
    name = limit_name(limit)
    if figure is None:
        return Judged(name, None, limit.limit_ms, f"{name} not measured{_why(limit, measured.n)}")
    sign = "≤" if figure <= limit.limit_ms else ">"
    return Judged(name, figure, limit.limit_ms, f"{name} {_ms(figure)} {sign} {_ms(limit.limit_ms)} ms")


def limit_name(limit: Limit) -> str:
    """As "p95 TTFT"."""
    return f"{limit.statistic} {_WORDS[limit.metric]}"


def request_figure(record: RequestRecord, limit: Limit) -> float | None:
    """What one request is judged by, ms: its latency; of its gaps between tokens, the limit's percentile."""
    if limit.metric == "ttft_ms":
        return record.ttft_ms
    if limit.metric == "e2e_ms":
        return record.e2e_ms
    if limit.metric == "tpot_ms":
        return tpot_ms(record)
    gaps = itl_ms(record)
    if not gaps:
        return None
    percent = _PERCENT.get(limit.statistic)
    return float(np.mean(gaps) if percent is None else np.percentile(gaps, percent))


def _is_good(record: RequestRecord, slo: Slo) -> bool:
    """A reply of one token has neither TPOT nor gaps, and breaks no limit of theirs."""
    for limit in slo.per_request():
        figure = request_figure(record, limit)
        if figure is None and limit.metric in ("ttft_ms", "e2e_ms"):
            return False
        if figure is not None and not figure <= limit.limit_ms:
            return False
    return True


def _why(limit: Limit, requests: int) -> str:
    least = _LEAST_REQUESTS.get(limit.statistic, 0)
    return f": it takes {least:,} requests, this Run has {requests:,}" if requests < least else ""


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"
