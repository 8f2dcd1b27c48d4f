"""Metrics: from request records to one Measurement. Every definition is here once, with its text for tooltips.

Names and formulas are those of vLLM's serving benchmark. Only completed requests enter a figure; failed and
cancelled ones are counted beside. This file does not know how records come about (``loadgen.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from mcp_core.results import Measurement, Quantiles, RequestRecord

__all__ = [
    "DEFINITIONS",
    "MIN_REQUESTS_P95",
    "MIN_REQUESTS_P99",
    "itl_ms",
    "output_tokens",
    "quantiles",
    "summarize",
    "tpot_ms",
]

MIN_REQUESTS_P95 = 200
MIN_REQUESTS_P99 = 1000

DEFINITIONS: dict[str, str] = {
    "ttft_ms": "Time to first token: request sent → first chunk that carries a token received, client side, "
    "queue included; ms.",
    "tpot_ms": "Time per output token, one value a request: (E2E − TTFT) / (output tokens − 1), for replies of "
    "at least 2 tokens; ms.",
    "itl_ms": "Inter-token latency: every gap between two chunks that carry tokens, pooled over the completed "
    "requests; ms. n is the number of requests behind the gaps.",
    "e2e_ms": "End to end: request sent → last token received, client side; ms.",
    "output_tok_s": "Output throughput: output tokens of the completed requests / wall time; tokens/s.",
    "total_tok_s": "Total throughput: prompt and output tokens of the completed requests / wall time; tokens/s.",
    "requests_s": "Request throughput: completed requests / wall time; requests/s.",
    "duration_s": "Wall time from the first request sent to the last one ended, warm-up excluded; s.",
    "completed": "Requests that ended as asked; only these enter latencies and throughput.",
    "failed": "Requests that ended in an error or took longer than the workload's timeout.",
    "cancelled": "Requests that were running when the measurement was stopped.",
    "engine_output_tok_s": "Output tokens / seconds of prefill and decode, by the engine's own counters; tokens/s.",
    "engine_tpot_ms": "Median over requests of decode time / (output tokens − 1), by the engine's own clock; ms.",
    "queue_ms": "From a request's arrival to its first step, by the server's own timing; ms.",
    "prefill_ms": "From a request's first step to its first token, by the server's own timing; ms.",
    "decode_ms": "From a request's first token to its last, by the server's own timing; ms.",
    "client_lag_p99_ms": "How late the load generator's own loop was, 99th percentile; above 2 ms the Run is "
    "client-limited; ms.",
    "first_answer_ms": "Request sent → first token of the answer received, where the server marks reasoning apart; "
    "TTFT is then the first token of the reasoning; ms.",
    "late_p99_ms": "How long after they were due requests were sent, 99th percentile; no reply is waited for; ms.",
    "mean_at_once": "Mean number of completed requests that were running at once: sum of their E2E / wall time.",
    "over_saturated": "Requests came faster than they were served: the queue grew all the while.",
    "p95": f"Shown from {MIN_REQUESTS_P95} requests on, p99 from {MIN_REQUESTS_P99:,} on; fewer are too few.",
}


def summarize(
    records: Sequence[RequestRecord],
    duration_s: float,
    *,
    engine_output_tok_s: float | None = None,
    engine_tpot_ms: float | None = None,
    client_lag_p99_ms: float | None = None,
    over_saturated: bool | None = None,
) -> Measurement:
    """The Measurement of these records over ``duration_s`` of wall time; the keywords are stored as they are.

    A throughput is None when no time passed, or when a completed request has an unknown token count.
    """
    done = [record for record in records if record.status == "ok"]
    gaps = [itl_ms(record) for record in done]
    prompt, output = _total(r.prompt_tokens for r in done), _total(output_tokens(r) for r in done)
    total = None if prompt is None or output is None else prompt + output
    return Measurement(
        ttft_ms=_per_request(record.ttft_ms for record in done),
        tpot_ms=_per_request(tpot_ms(record) for record in done),
        itl_ms=quantiles([gap for each in gaps for gap in each], requests=sum(1 for each in gaps if each)),
        e2e_ms=_per_request(record.e2e_ms for record in done),
        duration_s=duration_s,
        requests=len(records),
        completed=len(done),
        failed=sum(record.status == "failed" for record in records),
        cancelled=sum(record.status == "cancelled" for record in records),
        prompt_tokens=sum(record.prompt_tokens or 0 for record in done),
        output_tokens=sum(output_tokens(record) or 0 for record in done),
        output_tok_s=_rate(output, duration_s),
        total_tok_s=_rate(total, duration_s),
        requests_s=_rate(len(done), duration_s),
        engine_output_tok_s=engine_output_tok_s,
        engine_tpot_ms=engine_tpot_ms,
        client_lag_p99_ms=client_lag_p99_ms,
        queue_ms=_by_server(done, "queue_ms"),
        prefill_ms=_by_server(done, "prefill_ms"),
        decode_ms=_by_server(done, "decode_ms"),
        first_answer_ms=_optional(record.first_answer_ms for record in done),
        late_p99_ms=_late_p99_ms(records),
        mean_at_once=_rate(sum(record.e2e_ms or 0.0 for record in done) / 1e3, duration_s),
        over_saturated=over_saturated,
    )


def output_tokens(record: RequestRecord) -> int | None:
    """Tokens of the reply: the server's usage, else the sum over its chunks; None when neither is known."""
    if record.output_tokens is not None:
        return record.output_tokens
    return sum(record.chunk_tokens) if record.chunk_tokens else None


def tpot_ms(record: RequestRecord) -> float | None:
    """(E2E − TTFT) / (output tokens − 1), ms; None for replies of fewer than 2 tokens."""
    tokens = output_tokens(record)
    if record.e2e_ms is None or record.ttft_ms is None or tokens is None or tokens < 2:
        return None
    return (record.e2e_ms - record.ttft_ms) / (tokens - 1)


def itl_ms(record: RequestRecord) -> tuple[float, ...]:
    """Gaps between this request's chunks that carry tokens, ms; one fewer than there are such chunks."""
    arrivals = [at for at, tokens in zip(record.chunk_ms, record.chunk_tokens, strict=True) if tokens]
    return tuple(later - earlier for earlier, later in pairwise(arrivals))


def quantiles(values: Sequence[float], requests: int) -> Quantiles:
    """Percentiles (linear interpolation) of ``values`` that come from ``requests`` requests.

    p95 needs 200 requests and p99 1,000, however many values there are: gaps of one request are not independent.
    """
    if not values:
        return Quantiles(n=requests)
    p50, p90, p95, p99 = (float(p) for p in np.percentile(values, (50, 90, 95, 99)))
    return Quantiles(
        mean=float(np.mean(values)),
        p50=p50,
        p90=p90,
        p95=p95 if requests >= MIN_REQUESTS_P95 else None,
        p99=p99 if requests >= MIN_REQUESTS_P99 else None,
        max=float(max(values)),
        n=requests,
    )


def _per_request(values: Iterable[float | None]) -> Quantiles:
    known = [value for value in values if value is not None]
    return quantiles(known, requests=len(known))


def _optional(values: Iterable[float | None]) -> Quantiles | None:
    """As ``_per_request``; None where there is not one."""
    found = _per_request(values)
    return found if found.n else None


def _late_p99_ms(records: Sequence[RequestRecord]) -> float | None:
    late_ms = [record.late_ms for record in records if record.late_ms is not None]
    return float(np.percentile(late_ms, 99)) if late_ms else None


def _by_server(records: Iterable[RequestRecord], name: str) -> Quantiles | None:
    """One entry of the server's own timing; None where it gives none."""
    times = [each.server_timing[name] for each in records if each.server_timing and name in each.server_timing]
    return quantiles(times, requests=len(times)) if times else None


def _total(counts: Iterable[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _rate(count: float | None, duration_s: float) -> float | None:
    return count / duration_s if count is not None and duration_s > 0 else None
