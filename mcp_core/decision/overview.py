"""Overview: all configurations of one model under one traffic on one device as points: frontier, curves, crossover.

Only measured loads are points. This file does not know how they are drawn (``pages/_ui/decision_charts.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from mcp_core.decision.facts import RunFacts, short_model, short_names
from mcp_core.evaluation.attainment import goodput
from mcp_core.evaluation.request_samples import RequestSamples
from mcp_core.goal import Slo
from mcp_core.recipe import Recipe

__all__ = ["Crossover", "Group", "OverviewPoint", "crossover", "goodputs", "groups", "pareto", "points_of"]


@dataclass(frozen=True, slots=True)
class OverviewPoint:
    """One configuration at one load: its newest good Run."""

    facts: RunFacts
    load: float

    @property
    def per_device(self) -> float:
        """Output tokens/s for each GPU, or for the machine."""
        return (self.facts.output_tok_s or 0.0) / max(self.facts.devices, 1)

    @property
    def per_user(self) -> float | None:
        """Output tokens/s of one user: 1,000 / median TPOT."""
        tpot_ms = self.facts.figure("tpot_ms", "p50")
        return 1000 / tpot_ms if tpot_ms else None

    @property
    def kl(self) -> float | None:
        """Mean KL, nats."""
        value = (self.facts.fidelity or {}).get("kl")
        return float(value) if isinstance(value, float | int) else None


@dataclass(frozen=True, slots=True)
class Crossover:
    """Between two measured loads the fastest configuration changes."""

    below: float
    above: float
    before: str
    after: str


class Group(NamedTuple):
    """Whose figures belong in one picture: a smaller model would beat a larger one by its size alone."""

    traffic: str
    device: str
    load_kind: str
    model: str

    @classmethod
    def of(cls, run: RunFacts) -> Group:
        """Of this Run."""
        return cls(run.traffic, run.device, run.load_kind, _model(run.recipe))


@functools.lru_cache(maxsize=1024)
def _model(recipe: str) -> str:
    """The same for one checkpoint, whether its content hash is known yet; sizes tell custom shapes apart."""
    model = Recipe.from_json(recipe).model
    return "" if model.source == "endpoint" else model.model_copy(update={"sha256": None}).model_dump_json()


def _words(run: RunFacts, workloads: Mapping[str, set[str]]) -> str:
    """One traffic may have been measured under several names: the one of most configurations comes first."""
    first, *others = sorted(workloads, key=lambda name: (-len(workloads[name]), name))
    more = f" (also named {', '.join(others[:_MOST_NAMES])}{', ...' if len(others) > _MOST_NAMES else ''})"
    named = first + (more if others else "")
    return f"{_model_name(run)} · {named} · {run.device or 'no device'}{_RATE[run.load_kind]}"


def _model_name(run: RunFacts) -> str:
    shape = Recipe.from_json(run.recipe).model.shape
    sizes = f" {shape.layers} × {shape.hidden}" if shape else ""
    return f"{short_model(run.model)}{sizes}"


def groups(runs: Sequence[RunFacts]) -> dict[Group, str]:
    """Models, traffics, devices and kinds of load that there are good Runs of -> in words, the most configurations
    first."""
    newest: dict[Group, RunFacts] = {}
    workloads: dict[Group, dict[str, set[str]]] = {}
    for run in runs:
        if run.measured and run.load is not None:
            newest.setdefault(Group.of(run), run)
            names = workloads.setdefault(Group.of(run), {})
            names.setdefault(run.workload, set()).add(run.configuration)
    found = {key: len(set().union(*workloads[key].values())) for key in newest}
    return {key: _words(newest[key], workloads[key]) for key in sorted(found, key=lambda each: -found[each])}


_RATE = {"concurrency": "", "rate_s": " · by rate"}
_MOST_NAMES = 2


def points_of(runs: Sequence[RunFacts], group: Group) -> tuple[OverviewPoint, ...]:
    """One for each configuration and load; a Run that may be compared counts before one that may not."""
    newest: dict[tuple[str, float], RunFacts] = {}
    for run in runs:
        if not run.measured or run.load is None or Group.of(run) != group:
            continue
        known = newest.setdefault((run.configuration, run.load), run)
        if not known.comparable and run.comparable:
            newest[run.configuration, run.load] = run
    names = short_names(list(newest.values()))
    found = sorted(newest.items(), key=lambda each: each[0][1])
    return tuple(OverviewPoint(replace(run, name=names[run.configuration]), load) for (_, load), run in found)


def pareto(points: Sequence[OverviewPoint]) -> tuple[OverviewPoint, ...]:
    """Those that no other point beats in both tokens/s per user and per device, by rising tokens/s per user."""
    kept: list[OverviewPoint] = []
    for point in sorted(points, key=lambda each: (each.per_user or 0.0, each.per_device), reverse=True):
        if point.per_user is not None and (not kept or point.per_device > kept[-1].per_device):
            kept.append(point)
    return tuple(reversed(kept))


def goodputs(
    points: Sequence[OverviewPoint], slo: Slo, samples: Mapping[str, RequestSamples]
) -> dict[str, list[tuple[float, float]]]:
    """By configuration's name: (load, requests/s that meet the limits); without records or limits, requests/s."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        facts, known = point.facts, samples.get(point.facts.id)
        rate = facts.requests_s
        if known is not None and slo.limits() and facts.duration_s:
            _, rate = goodput(slo, known, facts.duration_s)
        elif slo.limits():
            continue
        if rate is not None:
            curves.setdefault(facts.name, []).append((point.load, rate))
    return curves


def crossover(points: Sequence[OverviewPoint]) -> tuple[Crossover, ...]:
    """Where the fastest configuration of one measured load is not the fastest of the next.

    Only configurations that were measured at both loads count.
    """
    by_load: dict[float, dict[str, OverviewPoint]] = {}
    for point in points:
        by_load.setdefault(point.load, {})[point.facts.configuration] = point
    loads = sorted(by_load)
    found = []
    for below, above in pairwise(loads):
        both = by_load[below].keys() & by_load[above].keys()
        if len(both) < 2:
            continue
        before, after = (
            max((by_load[load][key] for key in sorted(both)), key=lambda each: each.per_device).facts
            for load in (below, above)
        )
        if before.configuration != after.configuration:
            found.append(Crossover(below, above, before.name, after.name))
    return tuple(found)
