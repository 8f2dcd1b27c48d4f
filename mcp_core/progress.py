"""ProgressTracker: reports of stage and fraction in, a Progress with elapsed and remaining time out.

This file does not know what is in progress, or where the reports come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mcp_core.views import Progress

__all__ = ["ProgressTracker"]


@dataclass(slots=True)
class ProgressTracker:
    """Follows one piece of work. All times are seconds of one clock, the caller's choice.

    The remaining time is that of the present stage, from the rate since the stage's first fraction: a resumed
    download starts at 0.6 without having earned it.
    """

    started_s: float
    stage: str = "start"
    fraction: float | None = None
    message: str = ""
    _first: tuple[float, float] | None = field(default=None, init=False)  # (fraction, time) of this stage
    _last_s: float = field(default=0.0, init=False)

    def update(self, stage: str, fraction: float | None, message: str, at_s: float) -> None:
        """Take one report, made at ``at_s``; ``fraction`` is 0..1 of the stage, None when unknown."""
        if stage != self.stage or fraction is None:
            self._first = None
        self.stage, self.fraction, self.message, self._last_s = stage, fraction, message, at_s
        if fraction is not None and self._first is None:
            self._first = (fraction, at_s)

    def view(self, now_s: float) -> Progress:
        """How far it is at ``now_s``."""
        return Progress(
            self.stage, self.fraction, self.message, max(0.0, now_s - self.started_s), self._remaining_s(now_s)
        )

    def _remaining_s(self, now_s: float) -> float | None:
        if self.fraction is None or self._first is None:
            return None
        first, since_s = self._first
        done, took_s = self.fraction - first, self._last_s - since_s
        if done <= 0 or took_s <= 0:
            return None
        return max(0.0, (1.0 - self.fraction) * took_s / done - (now_s - self._last_s))
