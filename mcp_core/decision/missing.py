"""Missing: which Runs and fidelities would tell what a decision could not, how long they take, and the command.

This file does not know how they are queued (``sweep_desk.py``, ``studies.py``) or how long judging a fidelity takes
(``evaluation/fidelity_time.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from mcp_core.decision.candidates import Candidate, Point, Scene, fidelity_of
from mcp_core.decision.command_lines import bench_command, fidelity_command
from mcp_core.decision.compare import Comparison
from mcp_core.decision.decision import Missing
from mcp_core.decision.facts import RunFacts
from mcp_core.decision.limits import Broken, judged_fidelity
from mcp_core.evaluation.attainment import least_requests
from mcp_core.evaluation.metrics import MIN_REQUESTS_P95
from mcp_core.recipe import Recipe
from mcp_core.sweep_plan import SweepPlan
from mcp_core.workload import Workload

__all__ = ["Ranked", "command_for", "missing_runs", "needed_workload", "plans_of", "recipes_to_judge"]

MOST_LISTED = 50
# Of a Run whose pace is not known, s; and what is added to a known one, so that enough requests come together.
_UNKNOWN_S, _MARGIN, _SHORTEST_S = 120.0, 1.1, 10.0
_FIDELITY = ("KL", "top-1")
# What a Run at a load tells again; other refusals stand whatever is measured.
_TELLING = ("not measured", "not measured at this load", "stale", "not comparable")


@dataclass(frozen=True)
class Ranked:
    """A candidate that meets the Goal at ``point``; the smaller its score the better."""

    candidate: Candidate
    point: Point
    score: float

    @property
    def memory_bytes(self) -> float:
        """At its peak; what is not known is no smaller than anything."""
        return self.candidate.facts.peak_bytes or float("inf")


def missing_runs(
    leader: Ranked | None,
    others: Sequence[Ranked],
    verdicts: Mapping[str, Comparison],
    refused: Sequence[Candidate],
    scene: Scene,
) -> tuple[Missing, ...]:
    """Repeats that tell near ones apart, then loads and figures that a refused one lacks, its fidelity last."""
    found = [*_repeats(leader, others, verdicts), *_lacking(refused, scene), *_unjudged(refused, scene)]
    return tuple(found[:MOST_LISTED])


def plans_of(missing: Sequence[Missing]) -> tuple[SweepPlan, ...]:
    """One Run each, in turn: A B A B. A server elsewhere is not ours to start and has none."""
    ours = [(each, each.workload) for each in missing if each.recipe.model.source != "endpoint"]
    rounds = range(max((each.repeats for each, _ in ours), default=0))
    return tuple(
        _plan(each, workload, turn)
        for turn in rounds
        for each, workload in ours
        if workload is not None and turn < each.repeats
    )


def recipes_to_judge(missing: Sequence[Missing]) -> tuple[Recipe, ...]:
    """Those whose fidelity is lacking."""
    return tuple(each.recipe for each in missing if each.workload is None)


def _plan(missing: Missing, workload: Workload, turn: int) -> SweepPlan:
    seconds = _UNKNOWN_S if missing.seconds is None else missing.seconds / missing.repeats * _MARGIN
    return SweepPlan(
        name=f"to decide: {missing.name}"[:80],
        base=missing.recipe,
        workload=workload.replace({"repeat": workload.repeat + turn}),
        probe_s=0,
        keep=None,
        capacity_s=max(_SHORTEST_S, seconds),
        confirm=0,
    )


def command_for(candidate: Candidate, scene: Scene) -> str:
    """What measures what a refused candidate lacks; empty where nothing lacks."""
    first = candidate.broken[0]
    if first.cause not in (*_TELLING, "other workload"):
        return ""
    if first.limit in _FIDELITY:
        return fidelity_command(candidate.recipe) if _can_be_judged(candidate) else ""
    return bench_command(candidate.recipe, needed_workload(candidate, scene))


def needed_workload(candidate: Candidate, scene: Scene) -> Workload:
    """The asked traffic at the asked load, long enough for the percentiles that are limited, with new prompts."""
    traffic = scene.goal.traffic()
    own = candidate.facts.traffic == scene.traffic
    base = candidate.workload if own or traffic is None else traffic
    if scene.asked is not None and base.load_kind == scene.load_kind and base.load is not None:
        base = base.at_load(scene.asked)
    elif scene.goal.rate_s is not None:
        base = base.replace({"arrivals": {"kind": "poisson", "rate_s": scene.goal.rate_s}})
    repeat = candidate.workload.repeat + 1 if own else 0
    # A smoke test is too small to decide by: the percentiles that are shown with every Run want more requests.
    least = max(least_requests(scene.goal.slo), MIN_REQUESTS_P95 if base.smoke_test else 1)
    changes: dict[str, float] = {"requests": max(base.requests, least), "repeat": repeat, "smoke_test": False}
    if base.duration_s is not None:  # that alone ends it, whatever number of requests is asked for
        changes["duration_s"] = max(base.duration_s, math.ceil((_pace(candidate.runs) or 0) * least * _MARGIN))
    return base.replace(changes)


def _repeats(
    leader: Ranked | None, others: Sequence[Ranked], verdicts: Mapping[str, Comparison]
) -> Iterator[Missing]:
    """The leader once, with as many starts as its nearest undecided rival needs, then each rival."""
    undecided = [
        (each, found)
        for each in others
        if (found := verdicts.get(each.candidate.facts.id)) is not None and found.verdict == "undecided"
    ]
    if leader is None or not undecided:
        return
    most = max(found.more for _, found in undecided)
    rivals = " and ".join(each.candidate.name for each, _ in undecided[:2])
    if most:
        yield _repeat(leader.candidate, most, f"the data cannot tell it from {rivals}")
    for each, found in undecided:
        if found.more:
            yield _repeat(each.candidate, found.more, f"against {leader.candidate.name}: {found.why}")
        else:
            yield _at_same_load(each.candidate, leader, found.why)


def _repeat(candidate: Candidate, repeats: int, why: str) -> Missing:
    workload = candidate.workload.replace({"repeat": candidate.workload.repeat + 1})
    return _missing(candidate, workload, why, repeats)


def _at_same_load(candidate: Candidate, leader: Ranked, why: str) -> Missing:
    return _missing(candidate, leader.candidate.workload, why, 1)


def _lacking(refused: Sequence[Candidate], scene: Scene) -> Iterator[Missing]:
    for candidate in refused:
        first = candidate.broken[0]
        if first.cause in _TELLING and first.limit not in _FIDELITY:
            yield _missing(candidate, needed_workload(candidate, scene), first.text, 1)


def _unjudged(refused: Sequence[Candidate], scene: Scene) -> Iterator[Missing]:
    """A fidelity for all whose logits are the same, where a limit asks for it and nothing is known of it.

    Where it was sought in vain, seeking it once more says the same.
    """
    asked = [each for each in judged_fidelity({}, scene.goal.fidelity) if isinstance(each, Broken)]
    alike: dict[str, list[Candidate]] = {}
    for candidate in refused if asked else ():
        unknown = candidate.broken[0].cause in _TELLING and not fidelity_of(candidate.runs, scene)
        if unknown and _can_be_judged(candidate):
            alike.setdefault(candidate.facts.numerics or candidate.facts.id, []).append(candidate)
    for first, *others in alike.values():
        more = f"; it holds for {len(others)} more of the same numbers" if others else ""
        yield Missing(
            name=first.name,
            recipe=first.recipe,
            why=f"{asked[0].text}{more}",
            command=fidelity_command(first.recipe),
        )


def _can_be_judged(candidate: Candidate) -> bool:
    """Whether the fidelity job can start this one, and what it says means something."""
    facts = candidate.facts
    return facts.engine != "endpoint" and not facts.random_weights


def _missing(candidate: Candidate, workload: Workload, why: str, repeats: int) -> Missing:
    return Missing(
        name=candidate.name,
        recipe=candidate.recipe,
        workload=workload,
        why=why,
        repeats=repeats,
        seconds=_seconds(candidate.runs, workload, repeats),
        command=bench_command(candidate.recipe, workload),
    )


def _pace(runs: Sequence[RunFacts]) -> float | None:
    """Seconds from one completed request to the next, as in its own Runs."""
    paces = [each.duration_s / each.requests for each in runs if each.duration_s and each.requests]
    return median(paces) if paces else None


def _seconds(runs: Sequence[RunFacts], workload: Workload, repeats: int) -> float | None:
    """Loading and measuring as long as its own Runs took: as long as the Workload lasts, else by its requests."""
    pace = _pace(runs)
    if pace is None:
        return None
    loads = [each.load_s for each in runs if each.load_s is not None]
    measuring = workload.duration_s or pace * workload.requests
    return repeats * ((median(loads) if loads else 0.0) + pace * workload.warmup_requests + measuring)
