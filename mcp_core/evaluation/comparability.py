"""Comparability: why the figures of a Run may not be set beside another's, as far as its requests tell.

This file does not know the machine (``conditions.py``) or how anything was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mcp_core.evaluation.random_weights import data_dependent_costs
from mcp_core.evaluation.saturation import over_saturation
from mcp_core.recipe import Recipe
from mcp_core.results import Measurement, RequestRecord
from mcp_core.workload import Workload

__all__ = ["OTHERS_USED", "disturbance", "incomparable_load", "incomparable_requests"]

MAX_CLIENT_LAG_MS = 2.0
# A tenth of what a first token takes at a very fast server; ticks of the loop alone make one late by 1 ms.
MAX_LATE_MS = 10.0
OTHERS_USED = "other processes used"
# What comes from outside and may be over when the same is measured again (benchmark.py, conditions.py).
_PASSING = ("noisy", "throttled", "shared device")
# What such a disturbance brings about, too; alone it stays.
_SYMPTOMS = ("client-limited", "over-saturated")
# Measured on two cores with other work on them: the loop's p99 was 3 ms although they stayed below what is noisy.
_DISTURBING_CORES = 0.1
# What chat templates put before every first message, at most: the same in each prompt.
_TEMPLATE_TOKENS = 64


def disturbance(reasons: Sequence[str]) -> str:
    """In a word or two what disturbed a Run from outside; empty where nothing did, or where something else keeps it
    from being compared, too: measured again it would be no better."""
    words = ["noisy" if OTHERS_USED in reason else reason.partition(":")[0] for reason in reasons]
    passing = [word for word in words if word in _PASSING]
    return passing[0] if passing and set(words) <= {*_PASSING, *_SYMPTOMS} else ""


def incomparable_load(recipe: Recipe, workload: Workload) -> Iterator[str]:
    """What is known before anything is sent."""
    if workload.smoke_test:
        yield "smoke test: too small to decide anything"
    if recipe.model.source == "endpoint":
        yield "endpoint: the settings and the machine behind it are not known here"
    yield from data_dependent_costs(recipe)


def incomparable_requests(
    measurement: Measurement,
    records: Sequence[RequestRecord],
    workload: Workload,
    cached: int | None,
    others_cores: float | None = None,
) -> Iterator[str]:
    """What its requests show; ``cached`` is prompt tokens not computed by the server's counters, None without.

    ``others_cores`` is what processes besides the two used, where that alone did not make it noisy: enough to
    make a load generator late that shares its core with them.
    """
    beside = others_cores is not None and others_cores >= _DISTURBING_CORES
    besides = f"; {OTHERS_USED} {others_cores:.1f} cores meanwhile" if beside else ""
    lag_ms = measurement.client_lag_p99_ms
    if lag_ms is not None and lag_ms > MAX_CLIENT_LAG_MS:
        yield f"client-limited: the load generator's own loop was {lag_ms:.1f} ms late (p99){besides}"
    if measurement.late_p99_ms is not None and measurement.late_p99_ms > MAX_LATE_MS:
        late_ms = measurement.late_p99_ms
        yield f"client-limited: requests were sent {late_ms:.1f} ms after they were due (p99){besides}"
    warm = _warm_tokens(records, workload, cached)
    if warm > 0:
        yield f"warm cache: {warm} prompt tokens were not computed"
    again = _sent_again(records) if workload.prompts.kind == "file" and workload.duration_s is not None else 0
    if again:
        yield f"repeated prompts: {again} requests sent a prompt that was sent before"
    saturated = over_saturation(records) if workload.is_open else None
    if saturated is not None:
        yield saturated


def _sent_again(records: Sequence[RequestRecord]) -> int:
    sent = [record.prompt_sha256 for record in records if record.prompt_sha256 is not None]
    return len(sent) - len(set(sent))


def _warm_tokens(records: Sequence[RequestRecord], workload: Workload, cached: int | None) -> int:
    """Prompt tokens from a cache beyond what requests share by the workload's own plan: by each reply where all
    tell, else in all by the counters."""
    template = _TEMPLATE_TOKENS if workload.prompts.as_chat or workload.prompts.kind == "file" else 0
    told = [record for record in records if record.cached_tokens is not None]
    if told and (cached is None or len(told) == len(records)):
        return sum(max(0, (each.cached_tokens or 0) - each.shared_tokens - template) for each in told)
    return (cached or 0) - sum(record.shared_tokens + template for record in records)
