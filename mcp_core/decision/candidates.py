"""Candidates: every configuration with its measured loads, and each limit of a Goal that it holds or breaks.

A load that was not measured is never judged: what holds at a higher load holds below, what breaks at a lower one
breaks above, and between the two it is "not measured". This file does not know how candidates are ranked
(``recommend.py``) or told (``answer.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean

from mcp_core.decision.decision import Cause
from mcp_core.decision.facts import RunFacts, short_names, whole_runs
from mcp_core.decision.limits import Broken, judged_fidelity, unknowable
from mcp_core.decision.staleness import broken_versions
from mcp_core.evaluation.attainment import judge, told_apart
from mcp_core.goal import Goal
from mcp_core.recipe import Recipe
from mcp_core.results import Quantiles
from mcp_core.workload import Workload

__all__ = [
    "UNITS",
    "Candidate",
    "Point",
    "Scene",
    "candidates",
    "fidelity_of",
]

UNITS = {"concurrency": "users", "rate_s": "requests/s"}
# Holds for every Run of an endpoint, and keeps none of them from another.
_SHARED = "endpoint:"


@dataclass(frozen=True)
class Point:
    """One load of a configuration: its Runs, newest first, and what they break."""

    load: float
    runs: tuple[RunFacts, ...]
    broken: tuple[Broken, ...]
    held: tuple[str, ...]

    @property
    def meets(self) -> bool:
        """Whether every limit was measured and holds."""
        return not self.broken

    @property
    def starts(self) -> int:
        """Fresh process starts among its Runs."""
        return len({facts.start for facts in self.runs})


@dataclass(frozen=True)
class Candidate:
    """One configuration. ``point`` is the load that it is judged by; ``broken`` empty means that it may win."""

    runs: tuple[RunFacts, ...]
    name: str = ""
    points: tuple[Point, ...] = ()
    point: Point | None = None
    broken: tuple[Broken, ...] = ()

    @cached_property
    def recipe(self) -> Recipe:
        """Its Recipe."""
        return Recipe.from_json(self.runs[0].recipe)

    @cached_property
    def workload(self) -> Workload:
        """That of the Run that it is judged by."""
        return Workload.from_json(self.facts.workload_document)

    @property
    def facts(self) -> RunFacts:
        """The Run that it is judged by."""
        return self.point.runs[0] if self.point else self.runs[0]

    @property
    def capacity(self) -> float | None:
        """Largest measured load that meets every limit."""
        return max((point.load for point in self.points if point.meets), default=None)

    @property
    def broken_at(self) -> float | None:
        """Smallest measured load above the capacity at which a figure breaks a limit."""
        best = self.capacity or 0
        failing = (p.load for p in self.points if p.load > best and any(each.is_measured for each in p.broken))
        return min(failing, default=None)


@dataclass(frozen=True)
class Scene:
    """What is decided for: one traffic on one device, its loads counted in users or requests a second."""

    goal: Goal
    traffic: str
    workload: str
    device: str
    models: frozenset[str] = frozenset()
    versions: Mapping[str, str] = field(default_factory=dict)
    fidelities: Mapping[str, Mapping[str, float | str | None]] = field(default_factory=dict)

    @property
    def load_kind(self) -> str:
        """As in ``Workload.load_kind``."""
        return "rate_s" if self.goal.rate_s is not None else "concurrency"

    @property
    def asked(self) -> float | None:
        """Users or requests a second; None: each configuration at its capacity."""
        return self.goal.rate_s if self.goal.rate_s is not None else self.goal.users

    @property
    def unit(self) -> str:
        """Of a load, in words."""
        return UNITS[self.load_kind]


def candidates(facts: Sequence[RunFacts], scene: Scene) -> tuple[Candidate, ...]:
    """Every configuration that there are Runs of, judged; ``facts`` are newest first."""
    groups: dict[str, list[RunFacts]] = {}
    for each in facts:
        groups.setdefault(each.configuration, []).append(each)
    names = {key: f"{runs[0].model} · {runs[0].name}" for key, runs in groups.items()}
    names |= short_names([each for runs in groups.values() for each in runs if _is_about(each, scene)])
    return tuple(_candidate(tuple(runs), names[key], scene) for key, runs in groups.items())


def _candidate(runs: tuple[RunFacts, ...], name: str, scene: Scene) -> Candidate:
    usable, refusal = _usable(runs, scene)
    if refusal is not None:
        return Candidate(usable or runs, name, broken=(*_lost_anyway(usable or runs, refusal, scene), refusal))
    whole = Candidate(usable, name, _points(usable, scene))
    point, beside = _decided_point(whole, scene)
    if point is None:
        return replace(whole, broken=beside)
    return replace(whole, point=point, broken=(*point.broken, *beside))


def _lost_anyway(runs: Sequence[RunFacts], refusal: Broken, scene: Scene) -> Iterator[Broken]:
    """What disturbs a speed leaves fidelity as it is: a limit that it breaks stays broken, and says more."""
    if refusal.cause == "not comparable":
        yield from (each for each in _fidelity(runs, scene) if isinstance(each, Broken) and each.is_settled)


def _usable(runs: tuple[RunFacts, ...], scene: Scene) -> tuple[tuple[RunFacts, ...], Broken | None]:
    """Runs that may decide; where there are none, those that came nearest, and what they lack."""
    for fits, why in _SIEVES:
        kept = tuple(each for each in runs if fits(each, scene))
        if not kept:
            return runs, why(runs[0], scene)
        runs = kept
    return runs, None


def _is_about(facts: RunFacts, scene: Scene) -> bool:
    return facts.model in scene.models and _here(facts, scene) and _same_traffic(facts, scene)


def _here(facts: RunFacts, scene: Scene) -> bool:
    return facts.device == scene.device


def _same_traffic(facts: RunFacts, scene: Scene) -> bool:
    return facts.traffic == scene.traffic and facts.load_kind == scene.load_kind and facts.load is not None


def _fresh(facts: RunFacts, scene: Scene) -> bool:
    return not broken_versions(facts, scene.versions)


def _measured(facts: RunFacts, _scene: Scene) -> bool:
    return facts.measured


def _reasons(facts: RunFacts) -> list[str]:
    return [reason for reason in facts.reasons if not reason.startswith(_SHARED)]


def _may_compare(facts: RunFacts, _scene: Scene) -> bool:
    return not _reasons(facts)


def _other_traffic(facts: RunFacts, scene: Scene) -> str:
    if facts.workload != scene.workload:
        by = "" if facts.load_kind == scene.load_kind else f" by {scene.unit}"
        return f"measured under {facts.workload} only, not under {scene.workload}{by}"
    if facts.load_kind != scene.load_kind:
        return f"measured under {facts.workload} by {UNITS[facts.load_kind]} only, not by {scene.unit}"
    return f"measured under another {facts.workload} only: of other prompts, lengths or arrivals"


def _elsewhere(facts: RunFacts, scene: Scene) -> Broken:
    there, here = (name or "a device that is not named" for name in (facts.device, scene.device))
    return Broken("other hardware", f"measured on {there}, not on {here}")


def _ended_how(facts: RunFacts, _scene: Scene) -> Broken:
    if facts.status in ("failed", "refused"):
        return Broken("failed", f"{facts.status}: {facts.failure or facts.failure_kind}".rstrip("."))
    return Broken("not measured", f"not measured: its newest Run was {facts.status}")


# In this order; each with what is said when no Run of a configuration passes.
_SIEVES = (
    (
        lambda facts, scene: facts.model in scene.models,
        lambda facts, scene: Broken(
            "other model", f"another model: {facts.model}, not {' or '.join(sorted(scene.models))}"
        ),
    ),
    (_here, _elsewhere),
    (_same_traffic, lambda facts, scene: Broken("other workload", _other_traffic(facts, scene))),
    (_fresh, lambda facts, scene: Broken("stale", f"stale: {broken_versions(facts, scene.versions)}")),
    (_measured, _ended_how),
    (_may_compare, lambda facts, _: Broken("not comparable", f"not comparable: {_reasons(facts)[0]}")),
)


def _points(runs: Sequence[RunFacts], scene: Scene) -> tuple[Point, ...]:
    by_load: dict[float, list[RunFacts]] = {}
    for facts in runs:
        assert facts.load is not None
        by_load.setdefault(facts.load, []).append(facts)
    return tuple(_point(load, whole_runs(by_load[load]), scene) for load in sorted(by_load))


def _point(load: float, runs: tuple[RunFacts, ...], scene: Scene) -> Point:
    broken: list[Broken] = []
    held: list[str] = []
    for each in (
        *_failures(runs, scene.goal),
        *_latencies(runs, scene.goal),
        *_sizes(runs, scene),
        *_fidelity(runs, scene),
    ):
        if isinstance(each, Broken):
            broken.append(each)
        else:
            held.append(each)
    # What a figure breaks says more than what was not measured.
    return Point(load, runs, tuple(sorted(broken, key=lambda one: not one.is_measured)), tuple(held))


def _failures(runs: Sequence[RunFacts], goal: Goal) -> Iterator[Broken]:
    failed, ended = sum(each.failed for each in runs), sum(each.failed + each.completed for each in runs)
    share = failed / ended if ended else 1.0
    if share > goal.failures_max:
        shown, most = told_apart(100 * share, 100 * goal.failures_max, "{:.1f}".format)
        text = f"{shown}% of requests failed > {most}%"
        yield Broken("failures", text, "failed requests", share, goal.failures_max)


def _latencies(runs: Sequence[RunFacts], goal: Goal) -> Iterator[Broken | str]:
    """Each limit on the mean of the Runs' own percentiles."""
    for limit in goal.slo.limits():
        figures = [each.figure(limit.metric, limit.statistic) for each in runs]
        known = [figure for figure in figures if figure is not None]
        most = max(each.figure(limit.metric, "n") or 0 for each in runs)
        measured = Quantiles(n=int(most)).model_copy(update={limit.statistic: fmean(known) if known else None})
        found = judge(limit, measured)
        if found.holds:
            yield found.text
        else:
            cause: Cause = "not measured" if found.figure is None else "slo"
            yield Broken(cause, found.text, found.name, found.figure, limit.limit_ms)


def _sizes(runs: Sequence[RunFacts], scene: Scene) -> Iterator[Broken | str]:
    goal, facts = scene.goal, runs[0]
    used = facts.devices if facts.device_kind == "cuda" else 0
    if goal.gpus is not None and used > goal.gpus:
        yield Broken("gpus", f"{used} GPUs > {goal.gpus}", "GPUs", used, goal.gpus)
    if goal.memory_bytes is None:
        return
    peaks = [each.peak_bytes for each in runs if each.peak_bytes is not None]
    if not peaks:
        yield Broken("not measured", "peak memory not measured", "peak memory")
        return
    sign = "≤" if max(peaks) <= goal.memory_bytes else ">"
    shown, most = told_apart(max(peaks) / 1e9, goal.memory_bytes / 1e9, "{:.2f}".format)
    text = f"peak memory {shown} {sign} {most} GB"
    held = sign == "≤"
    yield text if held else Broken("memory", text, "peak memory", max(peaks), goal.memory_bytes)


def _fidelity(runs: Sequence[RunFacts], scene: Scene) -> Iterator[Broken | str]:
    never = unknowable(random=runs[0].random_weights)
    return judged_fidelity(fidelity_of(runs, scene), scene.goal.fidelity, never)


def fidelity_of(runs: Sequence[RunFacts], scene: Scene) -> Mapping[str, float | str | None]:
    """Its own Run's Fidelity counts before one judged apart, figures before why there are none; empty where neither
    is known."""
    apart = scene.fidelities.get(runs[0].numerics)
    known = [each for each in (*(run.fidelity for run in runs), apart) if each is not None]
    return next((each for each in known if "why" not in each), known[0] if known else {})


def _decided_point(candidate: Candidate, scene: Scene) -> tuple[Point | None, tuple[Broken, ...]]:
    """The load that decides, and what is broken beside what breaks at it."""
    points, asked = candidate.points, scene.asked
    meeting = [point for point in points if point.meets]
    if asked is None:
        return (meeting[-1] if meeting else points[0]), ()
    at = next((point for point in points if point.load == asked), None)
    if at is not None:
        return at, ()
    above = next((point for point in meeting if point.load > asked), None)
    if above is not None:
        return above, ()
    below = next((point for point in points if point.load < asked and _grows_worse(point)), None)
    if below is not None:
        broken = [
            replace(each, text=f"{each.text} at {below.load:g} {scene.unit} already") for each in below.broken
        ]
        return replace(below, broken=tuple(broken)), ()
    # Whatever the load, memory and fidelity are what they are.
    last = points[-1]
    fixed = tuple(each for each in last.broken if each.is_settled and each.cause not in ("slo", "failures"))
    measured = ", ".join(f"{point.load:g}" for point in points)
    text = f"not measured at {asked:g} {scene.unit} (measured at {measured})"
    return replace(last, broken=fixed), (Broken("not measured at this load", text, scene.unit),)


def _grows_worse(point: Point) -> bool:
    """Whether a figure breaks a limit that more load only makes worse."""
    return any(each.is_measured and each.cause in ("slo", "failures") for each in point.broken)
