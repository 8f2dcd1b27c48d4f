"""latency: percentiles of a known set, of the last minute only."""

from __future__ import annotations

import numpy as np
import pytest

from mcp_core.monitoring.latency import LatencyWindow, RecentLatency


def test_percentiles_are_numpys():
    now = [100.0]
    window = LatencyWindow(clock=lambda: now[0])
    ttfts, tpots = np.random.default_rng(1).exponential(50, 200), np.random.default_rng(2).exponential(9, 200)
    for ttft, tpot in zip(ttfts, tpots, strict=True):
        window.add(float(ttft), float(tpot))
    found = window.read()
    assert found.requests == 200
    assert found.ttft_p50_ms == pytest.approx(np.quantile(ttfts, 0.5))
    assert found.ttft_p95_ms == pytest.approx(np.quantile(ttfts, 0.95))
    assert found.tpot_p95_ms == pytest.approx(np.quantile(tpots, 0.95))


def test_what_ended_over_a_minute_ago_does_not_count():
    now = [0.0]
    window = LatencyWindow(clock=lambda: now[0])
    window.add(1000.0, None)
    now[0] = 50.0
    window.add(10.0, 2.0)
    assert window.read().ttft_p95_ms > 900
    now[0] = 61.0
    assert window.read() == RecentLatency(1, 10.0, 10.0, 2.0, 2.0)
    now[0] = 200.0
    assert window.read() == RecentLatency()


def test_a_worker_that_tells_more_or_less_is_understood():
    assert RecentLatency.from_dict({"requests": 3, "ttft_p50_ms": 4.0, "new": 1}) == RecentLatency(3, 4.0)
