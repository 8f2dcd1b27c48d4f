"""Compare: two configurations by the interval of their paired ratio, never by whether two intervals overlap.

The unit of repetition is a fresh process start. Starts are paired in the order in which they were made (A B A B),
so that what changes with the hour cancels, and card by card, so that what differs between two of a kind does;
requests of the same prompts are paired within. This file does not know where Runs are kept, or what a Goal asks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mcp_core.decision.facts import RunFacts
from mcp_core.evaluation.paired import Interval
from mcp_core.evaluation.request_samples import RequestSamples
from mcp_core.goal import Metric

__all__ = ["EQUIVALENT", "QUANTITIES", "Comparison", "Quantity", "Verdict", "compare", "obstacles", "starts_of"]

Verdict = Literal["better", "worse", "equivalent", "undecided"]
Array = npt.NDArray[np.float64]
# Runs of one process start.
Start = list[RunFacts]

# Within so much of each other, two configurations are the same for whoever has to choose.
EQUIVALENT = 0.03
RESAMPLES = 1000
MOST_REPEATS = 50
# With fewer starts nothing is known of how starts differ.
LEAST_STARTS = 2
# Quantiles 0.975 of Student's t with 1, 2, ... degrees of freedom; beyond, the normal distribution's.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_Z = 1.960
# Of the normal distribution, quantile 0.8.
_POWER = 0.842
# Reasons that do not keep two Runs apart when they hold for both.
_SHARED = ("endpoint:",)


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is compared. ``metric`` and ``statistic`` say how one request sample is summed up, if it can be."""

    name: str
    label: str
    unit: str
    smaller_is_better: bool
    metric: Metric | None = None
    statistic: str = "p50"

    def of(self, facts: RunFacts) -> float | None:
        """Its value in a Run."""
        if self.metric is not None:
            return facts.figure(self.metric, self.statistic)
        value: float | None = getattr(facts, self.name)
        return value

    def of_requests(self, values: Array) -> Array:
        """Along the last axis."""
        return (
            np.mean(values, axis=-1) if self.statistic == "mean" else np.percentile(values, self._percent, axis=-1)
        )

    @property
    def _percent(self) -> float:
        return float(self.statistic.removeprefix("p"))


QUANTITIES: dict[str, Quantity] = {
    each.name: each
    for each in (
        Quantity("output_tok_s", "throughput", "tok/s", False),
        Quantity("ttft_ms", "p50 TTFT", "ms", True, "ttft_ms"),
        Quantity("ttft_p95_ms", "p95 TTFT", "ms", True, "ttft_ms", "p95"),
        Quantity("tpot_ms", "p50 TPOT", "ms", True, "tpot_ms"),
        Quantity("e2e_ms", "p50 E2E", "ms", True, "e2e_ms"),
        Quantity("requests_s", "requests", "1/s", False),
        Quantity("peak_bytes", "peak memory", "bytes", True),
        Quantity("energy_j_per_token", "energy", "J/token", True),
    )
}


class Comparison(BaseModel):
    """B against A in one quantity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantity: str
    a: float | None = Field(description="Geometric mean over the process starts of A.")
    b: float | None
    starts: tuple[int, int] = Field(default=(0, 0), description="Process starts of A and of B that the means hold.")
    ratio: Interval | None = Field(description="B / A over pairs; null where either was not measured.")
    verdict: Verdict = Field(description="Of B: better, worse, equivalent within 3 %, or undecided.")
    pairs: int = Field(description="Pairs of process starts.")
    more: int = Field(default=0, description="Further starts of each that would probably tell; 0 when it is told.")
    why: str = Field(default="", description="Why it is undecided, or what keeps the two apart.")
    caveat: str = Field(default="", description="What else than the configurations the ratio may come from.")


def compare(
    a: Sequence[RunFacts],
    b: Sequence[RunFacts],
    samples: Mapping[str, RequestSamples],
    quantity: Quantity = QUANTITIES["output_tok_s"],
) -> Comparison:
    """B against A. Both are Runs of one configuration under one load; ``samples`` are those of their requests."""
    starts_a, starts_b = starts_of(a, quantity), starts_of(b, quantity)
    mean_a, mean_b = _mean(starts_a, quantity), _mean(starts_b, quantity)
    pairs, starts = _pairs(starts_a, starts_b), (len(starts_a), len(starts_b))
    blocked = next(obstacles(a, b), None)
    if blocked or mean_a is None or mean_b is None or not pairs:
        why = blocked or f"{quantity.label} was not measured on both"
        return Comparison(
            quantity=quantity.name,
            a=mean_a,
            b=mean_b,
            starts=starts,
            ratio=None,
            verdict="undecided",
            pairs=0,
            why=why,
        )
    ratios = np.array([math.log(_value(two, quantity) / _value(one, quantity)) for one, two in pairs])
    drawn = _drawn([_redraw(one, two, samples, quantity) for one, two in pairs], ratios)
    interval = _interval(ratios, drawn)
    verdict, why, more = _judge(interval, ratios, drawn, quantity)
    return Comparison(
        quantity=quantity.name,
        a=mean_a,
        b=mean_b,
        starts=starts,
        ratio=interval,
        verdict=verdict,
        pairs=len(pairs),
        more=more,
        why=why,
        caveat=_caveat(pairs),
    )


def obstacles(a: Sequence[RunFacts], b: Sequence[RunFacts]) -> Iterator[str]:
    """What keeps the two sides from being compared at all, each cause by its name."""
    both = (*a, *b)
    if {facts.kind for facts in a} & {facts.kind for facts in b}:
        yield "one configuration: both are repeats of it under the same load"
    for facts in both:
        for reason in facts.reasons:
            if not reason.startswith(_SHARED):
                yield reason
    for what, values in _circumstances(both):
        if len(values) > 1:
            yield f"{what}: {' and '.join(sorted(values))}"
    yield from _clocks(a, b)
    for name in sorted({name for facts in both for name in facts.versions}):
        values = {facts.versions.get(name, "none") for facts in both if _uses(facts, name)}
        if len(values) > 1:
            yield f"stale: {name} {' and '.join(sorted(values))}"


def _clocks(a: Sequence[RunFacts], b: Sequence[RunFacts]) -> Iterator[str]:
    """A device that ran slower for one side than for the other makes that side look worse than it is. What a card's
    own power cap takes is apart (``RunFacts.clock_mhz``): one configuration needs more power than another."""
    sides = [[each.clock_mhz for each in side if each.clock_mhz] for side in (a, b)]
    if not all(sides):
        return
    one, other = (sum(side) / len(side) for side in sides)
    if abs(math.log(other / one)) > math.log(1 + EQUIVALENT):
        yield f"clocks: {one:,.0f} and {other:,.0f} MHz"


def starts_of(runs: Sequence[RunFacts], quantity: Quantity) -> list[Start]:
    """Runs in which the quantity was measured, by the process start that they share, oldest start first."""
    starts: dict[str, Start] = {}
    for facts in sorted(runs, key=lambda each: each.created):
        value = quantity.of(facts)
        if facts.measured and value is not None and value > 0:
            starts.setdefault(facts.start, []).append(facts)
    return list(starts.values())


def _pairs(a: Sequence[Start], b: Sequence[Start]) -> list[tuple[Start, Start]]:
    """In the order in which they were made, both of one card; across cards only where none has both."""
    cards = dict.fromkeys(_card(start) for start in a)
    within = [
        pair
        for card in cards
        for pair in zip(*([start for start in side if _card(start) == card] for side in (a, b)), strict=False)
    ]
    return within or list(zip(a, b, strict=False))


def _card(start: Start) -> str:
    return start[0].card


def _caveat(pairs: Sequence[tuple[Start, Start]]) -> str:
    """A card is told from another only where both have an identifier."""
    if any(one and other and one != other for one, other in ((_card(a), _card(b)) for a, b in pairs)):
        return (
            f"Another card of the same kind: the two were measured on two {pairs[0][0][0].device}, "
            "and what differs between cards is in the ratio."
        )
    return ""


def _circumstances(runs: Sequence[RunFacts]) -> Iterator[tuple[str, set[str]]]:
    yield "other hardware", _machines(runs)
    yield (
        "other workload",
        {f"{facts.workload} ({facts.traffic[:8]})" for facts in runs if len(_traffics(runs)) > 1},
    )
    yield "power limit", {f"{facts.power_limit_w:,.0f} W" for facts in runs if facts.power_limit_w is not None}
    yield "other load", {f"{facts.load:g} {_LOADS[facts.load_kind]}" for facts in runs if facts.load is not None}


def _machines(runs: Sequence[RunFacts]) -> set[str]:
    """More than one: not comparable. Cards that are all known by their identifiers may be two of a kind, whatever
    their hosts are called; else the host's name has to do."""
    if not all(facts.card for facts in runs):
        return {f"{facts.device} of {facts.host}" for facts in runs}
    cpus = {facts.cpu for facts in runs}
    return {f"{facts.device} beside {facts.cpu}" if len(cpus) > 1 else facts.device for facts in runs}


_LOADS = {"concurrency": "users", "rate_s": "requests/s"}


def _traffics(runs: Sequence[RunFacts]) -> set[str]:
    return {facts.traffic for facts in runs}


def _uses(facts: RunFacts, library: str) -> bool:
    """A version that one side has no use for does not set them apart."""
    return library in facts.versions


def _value(start: Sequence[RunFacts], quantity: Quantity) -> float:
    values = [value for facts in start if (value := quantity.of(facts)) is not None]
    return math.exp(sum(math.log(value) for value in values) / len(values))


def _mean(starts: Sequence[Sequence[RunFacts]], quantity: Quantity) -> float | None:
    if not starts:
        return None
    return math.exp(sum(math.log(_value(each, quantity)) for each in starts) / len(starts))


def _redraw(
    one: Sequence[RunFacts],
    two: Sequence[RunFacts],
    samples: Mapping[str, RequestSamples],
    quantity: Quantity,
) -> Array | None:
    """The pair's log ratio over resampled requests; None where single requests say nothing of the quantity."""
    if quantity.metric is None:
        return None
    values_a, values_b = (_requests(side, samples, quantity.metric) for side in (one, two))
    if len(values_a) < LEAST_STARTS or len(values_b) < LEAST_STARTS:
        return None
    generator = np.random.default_rng(0)
    drawn_a = generator.integers(0, len(values_a), size=(RESAMPLES, len(values_a)))
    same = len(values_a) == len(values_b) and [each.repeat for each in one] == [each.repeat for each in two]
    drawn_b = drawn_a if same else generator.integers(0, len(values_b), size=(RESAMPLES, len(values_b)))
    redrawn: Array = np.log(quantity.of_requests(values_b[drawn_b]) / quantity.of_requests(values_a[drawn_a]))
    return redrawn


def _requests(start: Sequence[RunFacts], samples: Mapping[str, RequestSamples], metric: Metric) -> Array:
    found = [samples[facts.id].ok(metric) for facts in start if facts.id in samples]
    values = np.concatenate(found).astype(np.float64) if found else np.empty(0)
    kept: Array = values[np.isfinite(values) & (values > 0)]
    return kept


def _drawn(redrawn: Sequence[Array | None], ratios: Array) -> Array:
    """Means of the log ratio: pairs of starts drawn with replacement, in each of them its requests."""
    generator = np.random.default_rng(1)
    chosen = generator.integers(0, len(ratios), size=(RESAMPLES, len(ratios)))
    table = np.stack(
        [
            np.full(RESAMPLES, ratio) if each is None else each - each.mean() + ratio
            for each, ratio in zip(redrawn, ratios, strict=True)
        ]
    )
    means: Array = table[chosen, generator.integers(0, RESAMPLES, size=chosen.shape)].mean(axis=1)
    return means


def _interval(ratios: Array, drawn: Array) -> Interval:
    """Efron's percentiles, spread for few starts as Student's t would (Hesterberg 2015, "expanded percentile")."""
    centre = float(ratios.mean())
    if len(ratios) < LEAST_STARTS:
        return Interval(value=math.exp(centre))
    low, high = np.percentile(drawn, (2.5, 97.5))
    wider = _expansion(len(ratios))
    return Interval(
        value=math.exp(centre),
        low=math.exp(centre + wider * (float(low) - centre)),
        high=math.exp(centre + wider * (float(high) - centre)),
    )


def _expansion(starts: int) -> float:
    return math.sqrt(starts / (starts - 1)) * _t(starts) / _Z


def _t(starts: int) -> float:
    return _T[starts - 2] if starts - 2 < len(_T) else _Z


def _judge(interval: Interval, ratios: Array, drawn: Array, quantity: Quantity) -> tuple[Verdict, str, int]:
    if interval.low is None or interval.high is None:
        more = max(LEAST_STARTS, _needed(float(drawn.std()), float(ratios[0]), 1))  # at least: starts differ too
        return "undecided", "one start of each: how much starts differ is not known", more
    if interval.low >= 1 - EQUIVALENT and interval.high <= 1 + EQUIVALENT:
        return "equivalent", "", 0
    if interval.low > 1 or interval.high < 1:
        smaller = interval.high < 1
        return ("better" if smaller == quantity.smaller_is_better else "worse"), "", 0
    deviation = float(drawn.std()) * len(ratios) / math.sqrt(len(ratios) - 1)
    more = _needed(deviation, float(ratios.mean()), len(ratios))
    return "undecided", f"the interval {interval.low:.2f} to {interval.high:.2f} holds both", more


def _needed(deviation: float, centre: float, starts: int) -> int:
    """Further starts until the nearer answer shows in four cases of five, with this deviation between pairs."""
    distance = max(abs(centre), math.log(1 + EQUIVALENT) - abs(centre))
    for total in range(max(starts, LEAST_STARTS) + 1, MOST_REPEATS):
        if (_t(total) + _POWER) * deviation / math.sqrt(total) < distance:
            return total - starts
    return max(1, MOST_REPEATS - starts)
