from __future__ import annotations

import pytest

from mcp_core.progress import ProgressTracker


def test_remaining_is_the_stages_own_rate_from_where_it_began() -> None:
    tracker = ProgressTracker(started_s=100.0)
    tracker.update("download", 0.6, "resumed", at_s=110.0)
    assert tracker.view(110.0).remaining_s is None
    tracker.update("download", 0.8, "going", at_s=114.0)
    view = tracker.view(114.0)
    assert view.elapsed_s == 14.0
    assert view.remaining_s == pytest.approx(4.0)  # 0.2 in 4 s, 0.2 left
    assert tracker.view(117.0).remaining_s == pytest.approx(1.0)
    assert tracker.view(130.0).remaining_s == 0.0


def test_a_new_stage_or_an_unknown_fraction_has_no_remaining_time() -> None:
    tracker = ProgressTracker(started_s=0.0)
    tracker.update("load", 0.1, "", at_s=1.0)
    tracker.update("load", 0.5, "", at_s=2.0)
    tracker.update("quantize", 0.1, "", at_s=3.0)
    assert tracker.view(3.0).remaining_s is None
    tracker.update("warm-up", None, "one request", at_s=4.0)
    view = tracker.view(5.0)
    assert (view.stage, view.fraction, view.message, view.remaining_s) == ("warm-up", None, "one request", None)
