"""History: named series over a day in little memory: every second for an hour, 10 s for six, a minute for 24.

A row of a coarser ring has each gauge's mean, lowest and highest, and each counter's sum, over its span. This file
does not know what the names mean (``series.py``) or when samples come. Not thread-safe: ``sampler.py`` locks.
"""

from __future__ import annotations

import math
import weakref
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile, takewhile

from mcp_core.monitoring.series import Readings, is_worker

__all__ = ["MOST_ROWS", "RINGS", "History", "Ring", "Row", "Window"]

NOT_MEASURED = math.nan
# Rows of one window: more is no sharper on a screen, and takes longer to draw.
MOST_ROWS = 600


@dataclass(frozen=True, slots=True)
class Ring:
    """How long a row's span is and how long rows are kept, s."""

    span_s: float
    keep_s: float


RINGS = (Ring(1, 3600), Ring(10, 6 * 3600), Ring(60, 24 * 3600))


class _Names:
    """Where each series is in a row. Rows share one until a worker or a device comes or goes."""

    __slots__ = ("__weakref__", "counters", "gauges")

    def __init__(self, gauges: tuple[str, ...], counters: tuple[str, ...]) -> None:
        self.gauges = {name: position for position, name in enumerate(gauges)}
        self.counters = {name: position for position, name in enumerate(counters)}


@dataclass(frozen=True, slots=True)
class Row:
    """All series over one span. ``at_s`` is the middle of its samples, ``seconds`` their time; NaN: unmeasured."""

    at_s: float
    seconds: float
    names: _Names
    means: array[float]
    lows: array[float]
    highs: array[float]
    sums: array[float]


@dataclass(frozen=True, slots=True)
class Window:
    """Rows of one ring, oldest first; ``span_s`` is that ring's. ``labels`` is what a scope is called."""

    span_s: float
    rows: tuple[Row, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def gauges(self) -> tuple[str, ...]:
        """Names of all gauges, in the order in which they came."""
        return tuple(dict.fromkeys(name for names in self._schemas() for name in names.gauges))

    @property
    def counters(self) -> tuple[str, ...]:
        """Names of all counters."""
        return tuple(dict.fromkeys(name for names in self._schemas() for name in names.counters))

    @property
    def workers(self) -> tuple[str, ...]:
        """Scopes of the workers that are in it, in the order in which they came."""
        scopes = (name.partition(".")[0] for name in self.gauges)
        return tuple(dict.fromkeys(scope for scope in scopes if is_worker(scope)))

    @property
    def seconds(self) -> float:
        """How long it was sampled."""
        return sum(row.seconds for row in self.rows)

    def mean(self, name: str) -> list[tuple[float, float | None]]:
        """A gauge's mean over each row."""
        return [(row.at_s, _value(row.means, row.names.gauges.get(name))) for row in self.rows]

    def low(self, name: str) -> list[tuple[float, float | None]]:
        """A gauge's lowest sample in each row."""
        return [(row.at_s, _value(row.lows, row.names.gauges.get(name))) for row in self.rows]

    def high(self, name: str) -> list[tuple[float, float | None]]:
        """A gauge's highest sample in each row."""
        return [(row.at_s, _value(row.highs, row.names.gauges.get(name))) for row in self.rows]

    def added(self, name: str) -> list[tuple[float, float | None]]:
        """What a counter grew by during each row."""
        return [(row.at_s, _value(row.sums, row.names.counters.get(name))) for row in self.rows]

    def rate(self, name: str) -> list[tuple[float, float | None]]:
        """The same per second."""
        points = zip(self.rows, self.added(name), strict=True)
        return [(at_s, None if value is None else value / row.seconds) for row, (at_s, value) in points]

    def total(self, name: str) -> float | None:
        """What a counter grew by in the whole window; None when it was never measured."""
        values = [value for _, value in self.added(name) if value is not None]
        return sum(values) if values else None

    def between(self, from_s: float, to_s: float) -> Window:
        """The rows whose middle is in there."""
        later = dropwhile(lambda row: row.at_s < from_s, self.rows)
        return Window(self.span_s, tuple(takewhile(lambda row: row.at_s <= to_s, later)), self.labels)

    @classmethod
    def of(
        cls,
        span_s: float,
        at_s: Sequence[float],
        gauges: Mapping[str, Sequence[float | None]],
        counters: Mapping[str, Sequence[float | None]],
        labels: dict[str, str],
    ) -> Window:
        """A window of columns that were kept elsewhere; every one has a value for each of ``at_s``."""
        names = _Names(tuple(gauges), tuple(counters))
        rows = []
        for position, moment_s in enumerate(at_s):
            means, sums = (_packed(column[position] for column in each.values()) for each in (gauges, counters))
            rows.append(Row(moment_s, span_s, names, means, means, means, sums))
        return cls(span_s, tuple(rows), labels)

    def _schemas(self) -> Iterator[_Names]:
        last = None
        for row in self.rows:
            if row.names is not last:
                last = row.names
                yield last


class _Bucket:
    """Samples of one span until it is over."""

    __slots__ = ("counters", "first_s", "gauges", "last_s", "number", "seconds")

    def __init__(self, number: int, first_s: float) -> None:
        self.number = number
        self.first_s = self.last_s = first_s
        self.seconds = 0.0
        self.gauges: dict[str, tuple[int, float, float, float]] = {}  # samples, sum, lowest, highest
        self.counters: dict[str, float] = {}

    def add(self, at_s: float, readings: Readings, seconds: float) -> None:
        self.last_s = at_s
        self.seconds += seconds
        for name, value in readings.gauges.items():
            if value is None:
                self.gauges.setdefault(name, (0, 0.0, math.inf, -math.inf))
            else:
                n, total, low, high = self.gauges.get(name, (0, 0.0, math.inf, -math.inf))
                self.gauges[name] = (n + 1, total + value, min(low, value), max(high, value))
        for name, value in readings.counters.items():
            before = self.counters.get(name, NOT_MEASURED)
            if value is not None:
                self.counters[name] = value if math.isnan(before) else before + value
            else:
                self.counters[name] = before


class History:
    """Rings of rows. ``rings`` finest first; the finest takes every sample as a row of its own."""

    def __init__(self, rings: Sequence[Ring] = RINGS) -> None:
        self._rings = tuple(rings)
        self._rows: list[deque[Row]] = [deque(maxlen=round(ring.keep_s / ring.span_s)) for ring in self._rings]
        self._buckets: list[_Bucket | None] = [None for _ in self._rings]
        # Those that rows still hold: with one for each row, a day of rows would be mostly names.
        self._names: weakref.WeakValueDictionary[tuple[tuple[str, ...], ...], _Names]
        self._names = weakref.WeakValueDictionary()
        self._labels: dict[str, tuple[str, float]] = {}  # and when the scope was last seen
        self._newest_s: float | None = None

    def add(self, at_s: float, readings: Readings) -> None:
        """Take one sample, in the order of time (``at_s``, seconds since 1970)."""
        finest = self._rings[0].span_s
        since = finest if self._newest_s is None else at_s - self._newest_s
        # After a pause (the machine slept) a sample says nothing about the time in between.
        seconds = since if 0 < since < 5 * finest else finest
        self._newest_s = at_s
        self._label(at_s, readings.labels)
        self._rows[0].append(self._single(at_s, seconds, readings))
        for position in range(1, len(self._rings)):
            self._roll(position, at_s, seconds, readings)

    def window(self, from_s: float, to_s: float, most_rows: float = MOST_ROWS) -> Window:
        """Rows from the finest ring that reaches back so far and has no more than ``most_rows`` of them there."""
        position = next(
            (
                each
                for each, ring in enumerate(self._rings)
                if (to_s - from_s) / ring.span_s <= most_rows and self._reaches(each, from_s)
            ),
            len(self._rings) - 1,
        )
        rows = tuple(self._rows[position])
        open_bucket = self._buckets[position]
        if open_bucket is not None:
            rows += (self._closed(open_bucket),)
        labels = {scope: label for scope, (label, _) in self._labels.items()}
        return Window(self._rings[position].span_s, rows, labels).between(from_s, to_s)

    def _reaches(self, position: int, from_s: float) -> bool:
        """Whether nothing from there on has been dropped from a ring."""
        rows = self._rows[position]
        return len(rows) < (rows.maxlen or 0) or rows[0].at_s <= from_s

    def _label(self, at_s: float, labels: dict[str, str]) -> None:
        self._labels |= {scope: (label, at_s) for scope, label in labels.items()}
        oldest_s = at_s - self._rings[-1].keep_s
        if len(self._labels) > len(labels):
            self._labels = {scope: seen for scope, seen in self._labels.items() if seen[1] >= oldest_s}

    def _single(self, at_s: float, seconds: float, readings: Readings) -> Row:
        names = self._named(tuple(readings.gauges), tuple(readings.counters))
        values, sums = _packed(readings.gauges.values()), _packed(readings.counters.values())
        return Row(at_s, seconds, names, values, values, values, sums)

    def _roll(self, position: int, at_s: float, seconds: float, readings: Readings) -> None:
        number = int(at_s // self._rings[position].span_s)
        bucket = self._buckets[position]
        if bucket is not None and bucket.number != number:
            self._rows[position].append(self._closed(bucket))
            bucket = None
        if bucket is None:
            bucket = self._buckets[position] = _Bucket(number, at_s)
        bucket.add(at_s, readings, seconds)

    def _closed(self, bucket: _Bucket) -> Row:
        names = self._named(tuple(bucket.gauges), tuple(bucket.counters))
        figures = bucket.gauges.values()
        return Row(
            at_s=(bucket.first_s + bucket.last_s) / 2,
            seconds=bucket.seconds,
            names=names,
            means=array("d", [total / n if n else NOT_MEASURED for n, total, _, _ in figures]),
            lows=array("d", [low if n else NOT_MEASURED for n, _, low, _ in figures]),
            highs=array("d", [high if n else NOT_MEASURED for n, _, _, high in figures]),
            sums=array("d", bucket.counters.values()),
        )

    def _named(self, gauges: tuple[str, ...], counters: tuple[str, ...]) -> _Names:
        names = self._names.get((gauges, counters))
        if names is None:
            names = self._names[gauges, counters] = _Names(gauges, counters)
        return names


def _packed(values: Iterable[float | None]) -> array[float]:
    return array("d", [NOT_MEASURED if each is None else each for each in values])


def _value(values: array[float], position: int | None) -> float | None:
    if position is None:
        return None
    value = values[position]
    return None if math.isnan(value) else value
