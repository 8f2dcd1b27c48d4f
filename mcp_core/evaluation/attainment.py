"""Attainment: whether a latency limit holds, which share of requests met it, and goodput.

Goodput is recomputed from request records, so that limits can change after a Run. This file does not know what a
Goal asks beside latencies, or which Runs there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mcp_core.evaluation.metrics import MIN_REQUESTS_P95, MIN_REQUESTS_P99
from mcp_core.evaluation.request_samples import RequestSamples
from mcp_core.goal import Limit, Metric, Slo
from mcp_core.results import Measurement, Quantiles, RequestRecord

__all__ = ["Attainment", "Judged", "attain", "goodput", "judge", "limit_name", "limit_words", "told_apart"]

_WORDS: dict[Metric, str] = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2e_ms": "E2E"}
_LEAST_REQUESTS = {"p95": MIN_REQUESTS_P95, "p99": MIN_REQUESTS_P99}


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


def attain(
    slo: Slo, measurement: Measurement, records: Sequence[RequestRecord] | RequestSamples = ()
) -> Attainment:
    """Judge an Slo on a Run; cancelled requests, which its end cut off, count on neither side."""
    samples = records if isinstance(records, RequestSamples) else RequestSamples.of(records)
    judged = tuple(judge(limit, getattr(measurement, limit.metric)) for limit in slo.limits())
    return Attainment(judged, *goodput(slo, samples, measurement.duration_s))


def goodput(slo: Slo, samples: RequestSamples, duration_s: float) -> tuple[float | None, float | None]:
    """Share of requests that met every limit, and how many did a second; both None without samples."""
    if not len(samples):
        return None, None
    good = samples.good(slo)
    return good / len(samples), good / duration_s if duration_s > 0 else None


def judge(limit: Limit, measured: Quantiles) -> Judged:
    """One limit on the percentiles of a Run. A figure that is no number was not measured."""
    figure: float | None = getattr(measured, limit.statistic)
    figure = figure if figure is not None and np.isfinite(figure) else None
    name = limit_name(limit)
    if figure is None:
        return Judged(name, None, limit.limit_ms, f"{name} not measured{_why(limit, measured.n)}")
    sign, (shown, bound) = "≤" if figure <= limit.limit_ms else ">", told_apart(figure, limit.limit_ms, _ms)
    return Judged(name, figure, limit.limit_ms, f"{name} {shown} {sign} {bound} ms")


def told_apart(figure: float, bound: float, show: Callable[[float], str]) -> tuple[str, str]:
    """Both in words; with more digits where they would read alike, as in "500 > 500"."""
    if show(figure) != show(bound) or figure == bound:
        return show(figure), show(bound)
    return f"{figure:,.6g}", f"{bound:,.6g}"


def limit_name(limit: Limit) -> str:
    """As "p95 TTFT"."""
    return f"{limit.statistic} {_WORDS[limit.metric]}"


def least_requests(slo: Slo) -> int:
    """Requests that a Run takes for every percentile that is limited."""
    return max((_LEAST_REQUESTS.get(limit.statistic, 1) for limit in slo.limits()), default=1)


def limit_words(limit: Limit) -> str:
    """As "p95 TTFT ≤ 500 ms"."""
    return f"{limit_name(limit)} ≤ {limit.limit_ms:,.6g} ms"


def _why(limit: Limit, requests: int) -> str:
    least = _LEAST_REQUESTS.get(limit.statistic, 0)
    return f": it takes {least:,} requests, this Run has {requests:,}" if requests < least else ""


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"
