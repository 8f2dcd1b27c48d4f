"""RunTelemetry: what the machine and the worker did while one Run was measured, point by point.

Names are those of ``series.py``; the measured worker's scope is always ``worker``. This file does not know how
points are taken (``evaluation/run_recorder.py``) or stored (``decision/store.py``).
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mcp_core.monitoring.history import Window

__all__ = ["WORKER", "RunTelemetry"]

# The scope of the worker that is measured, as in "worker.output_tok_s".
WORKER = "worker"

Values = tuple[float | None, ...]


class RunTelemetry(BaseModel):
    """Series over the measuring window (warm-up apart). Every series has one value for each of ``at_s``.

    ``gauges`` are means over an interval, ``counters`` what was added during it. None was not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    began: datetime = Field(description="When measuring began.")
    interval_s: float = Field(description="What one point stands for, s.")
    at_s: tuple[float, ...] = Field(description="Middle of each interval since measuring began, s.")
    gauges: dict[str, Values] = Field(description='As "gpu0.power_w": scope, name with its unit.')
    counters: dict[str, Values] = Field(description='As "gpu0.energy_j": added during the interval.')
    labels: dict[str, str] = Field(default_factory=dict, description="What a scope is called.")
    throttle_reasons: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="By device scope: every reason that NVML gave for lower clocks."
    )

    @property
    def devices(self) -> tuple[str, ...]:
        """Scopes of the NVIDIA devices, in order."""
        return tuple(scope for scope in self.labels if scope.startswith("gpu"))

    def measured(self, name: str) -> tuple[float, ...]:
        """The values of a series that there are; empty for one that nothing measured."""
        values = self.gauges.get(name) or self.counters.get(name) or ()
        return tuple(value for value in values if value is not None)

    def mean(self, name: str) -> float | None:
        """Mean of a series; None when nothing measured it."""
        values = self.measured(name)
        return sum(values) / len(values) if values else None

    def highest(self, name: str) -> float | None:
        """The largest value of a series."""
        return max(self.measured(name), default=None)

    def lowest(self, name: str) -> float | None:
        """The smallest value of a series."""
        return min(self.measured(name), default=None)

    def total(self, name: str) -> float | None:
        """What a counter grew by in the whole window; None when nothing measured it."""
        values = self.measured(name) if name in self.counters else ()
        return sum(values) if values else None

    def window(self) -> Window:
        """The same as the Monitor draws it, at the times of the Run."""
        began_s = self.began.timestamp()
        times_s = [began_s + at_s for at_s in self.at_s]
        return Window.of(self.interval_s, times_s, self.gauges, self.counters, self.labels)
