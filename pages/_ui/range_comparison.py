"""Two time ranges beside each other: means, percentiles and their ratios, as before and after a live change.

This file does not know how the ranges are chosen (``monitor_compare.py``) or how the table is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mcp_core.monitoring.history import Window
from mcp_core.monitoring.latency import quantile
from pages._ui.charts import Points
from pages._ui.telemetry import over_workers

__all__ = ["Compared", "compare"]

# Latencies are those of the last minute's requests: the first minute of a range still tells of what was before it.
LATENCY_SPAN_S = 60.0


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure in both ranges; None where it was not measured. ``ratio`` is B to A, of the means."""

    name: str
    unit: str
    a_mean: float | None
    b_mean: float | None
    a_p95: float | None = None
    b_p95: float | None = None

    @property
    def ratio(self) -> float | None:
        return _ratio(self.a_mean, self.b_mean)

    @property
    def ratio_p95(self) -> float | None:
        return _ratio(self.a_p95, self.b_p95)


def compare(a: Window, b: Window) -> tuple[Compared, ...]:
    """Every figure that one of the two has."""
    rows = [*(_gauge(name, unit, read, a, b) for name, unit, read in _GAUGES), *_totals(a, b), *_devices(a, b)]
    return tuple(row for row in rows if row.a_mean is not None or row.b_mean is not None)


def _while_busy(window: Window) -> Points:
    """Throughput of all workers where a request ran: idle seconds are no slowness."""
    running = over_workers(window, "running")
    speed = over_workers(window, "output_tok_s")
    return [point for point, (_, count) in zip(speed, running, strict=True) if count]


def _latency(figure: str) -> Callable[[Window], Points]:
    def read(window: Window) -> Points:
        points = over_workers(window, figure, max)
        settled_s = window.rows[0].at_s + LATENCY_SPAN_S if window.rows else 0.0
        later = [point for point in points if point[0] >= settled_s]
        return later if any(value is not None for _, value in later) else points

    return read


def _of_workers(figure: str, scale: float = 1.0) -> Callable[[Window], Points]:
    return lambda window: [
        (at_s, None if value is None else value * scale) for at_s, value in over_workers(window, figure)
    ]


def _of(name: str, scale: float = 1.0) -> Callable[[Window], Points]:
    return lambda window: [(at_s, None if value is None else value * scale) for at_s, value in window.mean(name)]


_GAUGES: tuple[tuple[str, str, Callable[[Window], Points]], ...] = (
    ("Throughput while answering", "tok/s", _while_busy),
    ("Requests running", "", _of_workers("running")),
    ("Requests queued", "", _of_workers("queued")),
    ("TTFT, p50 of a minute", "ms", _latency("ttft_p50_ms")),
    ("TTFT, p95 of a minute", "ms", _latency("ttft_p95_ms")),
    ("TPOT, p50 of a minute", "ms", _latency("tpot_p50_ms")),
    ("TPOT, p95 of a minute", "ms", _latency("tpot_p95_ms")),
    ("KV pages used", "", _of_workers("kv_pages_used")),
    ("Worker memory", "GB", _of_workers("resident_bytes", 1e-9)),
    ("CPU", "%", _of("host.cpu_percent")),
    ("CPU, not of this app", "cores", _of("host.others_cores")),
)


def _gauge(name: str, unit: str, read: Callable[[Window], Points], a: Window, b: Window) -> Compared:
    sides = [sorted(value for _, value in read(window) if value is not None) for window in (a, b)]
    means = [sum(values) / len(values) if values else None for values in sides]
    p95s = [quantile(values, 0.95) for values in sides]
    return Compared(name, unit, means[0], means[1], p95s[0], p95s[1])


def _totals(a: Window, b: Window) -> list[Compared]:
    """Figures of a whole range: they have no percentile."""
    reads: tuple[tuple[str, str, Callable[[Window], float | None]], ...] = (
        ("Throughput over the whole range", "tok/s", lambda each: _per_second(each, "output_tokens")),
        ("Requests finished", "1/s", lambda each: _per_second(each, "finished")),
        ("Prefix hits", "%", _hits),
        (
            "Guesses accepted",
            "%",
            lambda each: _percent(_sum(each, "accepted_tokens"), _sum(each, "drafted_tokens")),
        ),
        ("Evictions", "1/s", lambda each: _per_second(each, "kv_evictions")),
        ("Preemptions", "1/s", lambda each: _per_second(each, "preemptions")),
        ("Energy per output token", "J", _energy),
    )
    return [Compared(name, unit, read(a), read(b)) for name, unit, read in reads]


def _devices(a: Window, b: Window) -> list[Compared]:
    scopes = [scope for scope in dict.fromkeys((*a.labels, *b.labels)) if scope.startswith("gpu")]
    figures = (
        ("utilization", "%", "utilization_percent", 1.0),
        ("power", "W", "power_w", 1.0),
        ("temperature", "°C", "temperature_c", 1.0),
        ("memory", "GB", "memory_used_bytes", 1e-9),
    )
    return [
        _gauge(f"GPU {scope.removeprefix('gpu')} {words}", unit, _of(f"{scope}.{name}", scale), a, b)
        for scope in scopes
        for words, unit, name, scale in figures
    ]


def _sum(window: Window, counter: str) -> float:
    return sum(window.total(f"{scope}.{counter}") or 0 for scope in window.workers)


def _per_second(window: Window, counter: str) -> float | None:
    return _sum(window, counter) / window.seconds if window.workers and window.seconds else None


def _percent(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole else None


def _hits(window: Window) -> float | None:
    hits = _sum(window, "cached_prompt_tokens")
    return _percent(hits, hits + _sum(window, "prompt_tokens"))


def _accepted(window: Window) -> float | None:
    return _percent(_sum(window, "accepted_tokens"), _sum(window, "drafted_tokens"))


def _energy(window: Window) -> float | None:
    used = [window.total(name) for name in window.counters if name.endswith(".energy_j")]
    known, tokens = [each for each in used if each is not None], _sum(window, "output_tokens")
    return sum(known) / tokens if known and tokens else None


def _ratio(a: float | None, b: float | None) -> float | None:
    return b / a if a and b is not None else None
