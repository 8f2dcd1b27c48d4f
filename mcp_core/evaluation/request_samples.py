"""RequestSamples: what deciding reads of a Run's request records, packed: one row of numbers a request.

A thousand Runs are judged and compared in the time in which one Run's records are parsed. This file does not know
what the numbers decide.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mcp_core.evaluation.metrics import itl_ms, output_tokens, tpot_ms
from mcp_core.goal import Limit, Metric, Slo
from mcp_core.results import RequestRecord

__all__ = ["RequestSamples"]

_STATUS = {"ok": 0.0, "failed": 1.0, "cancelled": 2.0}
_GAPS = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
_COLUMNS = (
    "index",
    "status",
    "tokens",
    "ttft_ms",
    "tpot_ms",
    "e2e_ms",
    "itl_mean",
    *(f"itl_{name}" for name in _GAPS),
)

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RequestSamples:
    """A row a request, a column a quantity; NaN was not measured. Rows are in the order of ``index``."""

    rows: Array

    @classmethod
    def of(cls, records: Sequence[RequestRecord]) -> RequestSamples:
        """Of these records; cancelled requests, which a Run's end cut off, stay out."""
        ended = sorted((each for each in records if each.status != "cancelled"), key=lambda each: each.index)
        rows = np.array([_row(each) for each in ended], dtype=np.float32)
        return cls(rows.reshape(len(ended), len(_COLUMNS)))

    @classmethod
    def unpack(cls, packed: bytes) -> RequestSamples:
        """What ``pack`` made."""
        return cls(np.frombuffer(zlib.decompress(packed), dtype=np.float32).reshape(-1, len(_COLUMNS)))

    def pack(self) -> bytes:
        """A few bytes a number."""
        return zlib.compress(self.rows.tobytes(), 1)

    def __len__(self) -> int:
        return len(self.rows)

    def ok(self, metric: Metric) -> Array:
        """That latency of the completed requests in their order, ms; of gaps between tokens, each one's mean."""
        done = self.rows[self._column("status") == _STATUS["ok"]]
        latencies: Array = done[:, _COLUMNS.index("itl_mean" if metric == "itl_ms" else metric)]
        return latencies

    def good(self, slo: Slo) -> int:
        """Completed requests that met every latency limit.

        A reply of one token has neither TPOT nor gaps, and breaks no limit of theirs.
        """
        good = self._column("status") == _STATUS["ok"]
        for limit in slo.per_request():
            figures = self._judged(limit)
            good &= (figures <= limit.limit_ms) | (np.isnan(figures) & (limit.metric in ("tpot_ms", "itl_ms")))
        return int(good.sum())

    def _judged(self, limit: Limit) -> Array:
        """What each request is judged by: its latency; of its gaps between tokens, the limit's percentile."""
        return self._column(f"itl_{limit.statistic}" if limit.metric == "itl_ms" else limit.metric)

    def _column(self, name: str) -> Array:
        return self.rows[:, _COLUMNS.index(name)]


def _row(record: RequestRecord) -> tuple[float, ...]:
    gaps = sorted(itl_ms(record))
    return (
        record.index,
        _STATUS[record.status],
        output_tokens(record) or 0,
        _number(record.ttft_ms),
        _number(tpot_ms(record)),
        _number(record.e2e_ms),
        sum(gaps) / len(gaps) if gaps else np.nan,
        *(_percentile(gaps, percent) for percent in _GAPS.values()),
    )


def _percentile(rising: Sequence[float], percent: float) -> float:
    """Linear interpolation as numpy's, which takes a hundred times as long for so few values."""
    if not rising:
        return np.nan
    place = percent / 100 * (len(rising) - 1)
    low = int(place)
    high = min(low + 1, len(rising) - 1)
    return rising[low] + (place - low) * (rising[high] - rising[low])


def _number(value: float | None) -> float:
    return np.nan if value is None else value
