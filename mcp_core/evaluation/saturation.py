"""Over-saturation: whether requests came faster than they were served, so that the queue grew all the while.

Then TTFT tells how long the measurement lasted, not how fast the server is. This file does not know what was meant
to be sent, or by which Workload.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mcp_core.results import RequestRecord

__all__ = ["LEAST_REQUESTS", "over_saturation"]

LEAST_REQUESTS = 50
# A queue that grows makes TTFT rise with the time of sending, all the while (rank correlation near 1) and far
# (several times its beginning). Chance makes either: queues near their capacity are slow to forget. Of 400
# simulated single servers with 200 Poisson arrivals, these say so of 1.5 % at 80 % load, 9 % at 90, 96 % at 120 %.
MIN_RISING = 0.7
MIN_GROWTH = 2.0
# Share of requests that a full queue turns away from which it was too much whatever the rest took.
MIN_REFUSED = 0.01


def over_saturation(records: Sequence[RequestRecord]) -> str | None:
    """Why these requests, sent whatever became of earlier ones, were more than the server could take; None where
    it kept up, or fewer than 50 completed."""
    refused = sum(record.failure is not None and record.failure.kind == "queue" for record in records)
    if refused >= max(1, MIN_REFUSED * len(records)):
        return f"over-saturated: {refused} of {len(records)} requests were turned away by a full queue"
    done = sorted((record.sent_ms, record.ttft_ms) for record in records if record.ttft_ms is not None)
    if len(done) < LEAST_REQUESTS:
        return None
    ttft_ms = np.array([ttft for _, ttft in done])
    quarter = len(ttft_ms) // 4
    begin_ms, end_ms = float(np.median(ttft_ms[:quarter])), float(np.median(ttft_ms[-quarter:]))
    if _rising(ttft_ms) < MIN_RISING or end_ms < MIN_GROWTH * begin_ms:
        return None
    return (
        "over-saturated: the queue grew all the while, p50 TTFT from "
        f"{begin_ms:,.0f} ms in the first quarter to {end_ms:,.0f} ms in the last"
    )


def _rising(values: NDArray[np.float64]) -> float:
    """Spearman's rank correlation with the position."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return float(np.corrcoef(np.arange(len(values)), ranks)[0, 1])
