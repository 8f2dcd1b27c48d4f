"""ImportedRow: one measurement of another tool in our metrics, and how its parts are read safely.

This file does not know any tool's file, or what a Run is made of (``importers.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from mcp_core.errors import InputError
from mcp_core.evaluation.metrics import MIN_REQUESTS_P95, MIN_REQUESTS_P99
from mcp_core.recipe import Engine
from mcp_core.results import Memory, Quantiles, RequestRecord

__all__ = ["ImportedRow", "count", "number", "part", "quantiles_of", "rest", "text", "values_of", "when"]


_NONE = Quantiles()


@dataclass(frozen=True, slots=True)
class ImportedRow:
    """Our metrics of one measurement; None was not in the file. Lengths are means, tokens.

    ``rate_s`` is of arrivals, None for a closed loop of ``users``; the load is not known where both are None.
    ``device`` is empty where the file names none.
    ``fields`` is what of the file has no place here, kept as it is.
    """

    model: str
    engine: Engine
    completed: int
    duration_s: float
    label: str = ""
    failed: int = 0
    cancelled: int = 0
    users: int | None = 1
    rate_s: float | None = None
    burstiness: float | None = None
    prompt_length: float | None = None
    output_length: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    output_tok_s: float | None = None
    total_tok_s: float | None = None
    requests_s: float | None = None
    ttft_ms: Quantiles = _NONE
    tpot_ms: Quantiles = _NONE
    itl_ms: Quantiles = _NONE
    e2e_ms: Quantiles = _NONE
    prefill_ms: Quantiles | None = None
    engine_tpot_ms: float | None = None
    memory: Memory | None = None
    load_s: float | None = None
    created: datetime | None = None
    device: str = ""
    gpu: bool = True
    versions: Mapping[str, str] = field(default_factory=dict)
    records: Sequence[RequestRecord] = ()
    notes: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


def number(document: Any, *names: str) -> float | None:
    """The first of these fields that is a finite number; true and false are none."""
    for name in names:
        value = document.get(name) if isinstance(document, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


def count(document: Any, *names: str) -> int:
    """The same as a whole number; 0 where there is none. Raises InputError for a negative one."""
    found = number(document, *names)
    if found is not None and found < 0:
        raise InputError(
            f"{names[0]} is {found:g}: a count is not negative.", "The file is damaged; make it again."
        )
    return round(found or 0)


def text(document: Any, *names: str) -> str:
    """The first of these fields that is a text that says something."""
    for name in names:
        value = document.get(name) if isinstance(document, Mapping) else None
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""


def part(document: Any, *path: str) -> Mapping[str, Any]:
    """The object at this path; an empty one where there is none."""
    for name in path:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document if isinstance(document, Mapping) else {}


def quantiles_of(
    mean: float | None,
    percentiles: Mapping[int, float | None],
    n: int,
    *,
    factor: float = 1.0,
    most: float | None = None,
) -> Quantiles:
    """In our form: no p95 under 200 requests and no p99 under 1,000. ``factor`` makes ms of the file's unit."""
    known = {level: value * factor for level, value in percentiles.items() if value is not None}
    return Quantiles(
        mean=None if mean is None else mean * factor,
        p50=known.get(50),
        p90=known.get(90),
        p95=known.get(95) if n >= MIN_REQUESTS_P95 else None,
        p99=known.get(99) if n >= MIN_REQUESTS_P99 else None,
        max=None if most is None else most * factor,
        n=n,
    )


def values_of(values: Any, factor: float) -> Quantiles | None:
    """The same from single values; None where there are none."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        return None
    numbers = [each for each in values if isinstance(each, int | float) and math.isfinite(each)]
    if not numbers:
        return None
    levels = {level: float(np.percentile(numbers, level)) for level in (50, 90, 95, 99)}
    return quantiles_of(float(np.mean(numbers)), levels, len(numbers), factor=factor, most=max(numbers))


def rest(document: Mapping[str, Any], taken: Iterable[str]) -> dict[str, Any]:
    """What of a document was not taken over."""
    left_out = frozenset(taken)
    return {name: value for name, value in document.items() if name not in left_out}


def when(value: Any) -> datetime | None:
    """A time as ISO text, as 20260131-235959 or as seconds since 1970; None where it is none of them."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 4e9:
        return datetime.fromtimestamp(value, UTC)
    if not isinstance(value, str):
        return None
    for read in (datetime.fromisoformat, lambda said: datetime.strptime(said, "%Y%m%d-%H%M%S").replace(tzinfo=UTC)):
        try:
            found = read(value)
        except ValueError:
            continue
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None
