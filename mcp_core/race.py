"""Race: streams that were measured, and what each had said after a time. Pure values.

This file does not know how a stream is measured (``races.py``) or drawn.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from mcp_core.recipe import Recipe
from mcp_core.results import Failure
from mcp_core.views import ReplyStats

__all__ = ["ENDED", "Lane", "RaceView", "Seen", "replay"]

ENDED = ("ok", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Lane:
    """One of the two. ``at_ms`` is when each chunk came, ms after sending, and ``pieces`` what text it brought."""

    worker_id: str
    title: str
    recipe: Recipe
    state: Literal["waiting", "warm-up", "measuring", "ok", "failed", "cancelled"]
    at_ms: tuple[float, ...] = ()
    pieces: tuple[str, ...] = ()
    stats: ReplyStats | None = None
    finish_reason: str | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class RaceView:
    """A prompt and its lanes; ``together`` says that both were sent at once and shared the device."""

    id: str
    prompt: str
    together: bool
    lanes: tuple[Lane, ...]

    @property
    def running(self) -> bool:
        """Whether a lane is still to be measured."""
        return any(lane.state not in ENDED for lane in self.lanes)

    @property
    def length_ms(self) -> float:
        """Until the last token of the slowest lane, ms."""
        return max((lane.at_ms[-1] for lane in self.lanes if lane.at_ms), default=0.0)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a reader had of a stream after a time. ``tok_s`` counts from sending; None before the first token."""

    text: str
    chunks: int
    ended: bool
    tok_s: float | None


def replay(lane: Lane, elapsed_ms: float) -> Seen:
    """The stream as it stood ``elapsed_ms`` after it was sent, at the pace at which it was measured."""
    chunks = bisect_right(lane.at_ms, elapsed_ms)
    ended = lane.state in ENDED and chunks == len(lane.at_ms)
    until_ms = lane.at_ms[-1] if ended and lane.at_ms else elapsed_ms
    speed = chunks / until_ms * 1e3 if chunks and until_ms > 0 else None
    return Seen("".join(lane.pieces[:chunks]), chunks, ended, speed)
