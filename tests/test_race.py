"""A stream replayed: pure, so every moment is checked against times written down here."""

from __future__ import annotations

import dataclasses

import pytest

from mcp_core.presets import bundled
from mcp_core.race import Lane, RaceView, replay

LANE = Lane("w1", "One", bundled(), "ok", at_ms=(100.0, 150.0, 150.0, 400.0), pieces=("The", " capi", "tal", "."))


@pytest.mark.parametrize(
    ("elapsed_ms", "text", "chunks", "ended"),
    [
        (0, "", 0, False),
        (99.9, "", 0, False),
        (100, "The", 1, False),
        (150, "The capital", 3, False),
        (399, "The capital", 3, False),
        (400, "The capital.", 4, True),
        (9_000, "The capital.", 4, True),
    ],
)
def test_the_text_so_far_is_what_had_come_by_then(elapsed_ms: float, text: str, chunks: int, ended: bool) -> None:
    seen = replay(LANE, elapsed_ms)
    assert (seen.text, seen.chunks, seen.ended) == (text, chunks, ended)


def test_the_speed_counts_from_sending_and_stops_with_the_stream() -> None:
    assert replay(LANE, 50).tok_s is None
    assert replay(LANE, 200).tok_s == pytest.approx(15.0)  # 3 tokens in 0.2 s
    assert replay(LANE, 400).tok_s == replay(LANE, 60_000).tok_s == pytest.approx(10.0)


def test_a_stream_that_is_still_measured_has_not_ended() -> None:
    assert not replay(dataclasses.replace(LANE, state="measuring"), 9_000).ended


def test_a_lane_without_a_token_ends_at_once_and_says_nothing() -> None:
    silent = dataclasses.replace(LANE, state="failed", at_ms=(), pieces=())
    seen = replay(silent, 0)
    assert (seen.text, seen.chunks, seen.ended, seen.tok_s) == ("", 0, True, None)


def test_a_race_lasts_as_long_as_its_slowest_lane() -> None:
    slow = dataclasses.replace(LANE, at_ms=(100.0, 900.0), pieces=("a", "b"))
    race = RaceView("r", "prompt", together=False, lanes=(LANE, slow))
    assert race.length_ms == 900.0
    assert not race.running
    assert dataclasses.replace(race, lanes=(LANE, dataclasses.replace(slow, state="waiting"))).running
