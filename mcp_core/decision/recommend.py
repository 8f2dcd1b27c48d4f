"""Recommend: a Goal and the stored Runs come to a Decision: winner, runners-up, and why each other was refused.

Measured figures decide and nothing is extrapolated. Those within 3 % of the leader are equal: the smaller memory
wins, then a fidelity that is higher beyond its error. This file does not know how a limit is judged
(``candidates.py``), how a difference is told from chance (``compare.py``) or how it is worded (``answer.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Protocol, get_args

from mcp_core.decision import answer
from mcp_core.decision.candidates import Candidate, Point, Scene, candidates, fidelity_of
from mcp_core.decision.compare import EQUIVALENT, QUANTITIES, Comparison, Quantity, compare
from mcp_core.decision.costs import cost_per_million_tokens, cost_per_request
from mcp_core.decision.decision import Cause, Choice, Decision, Evidence, Figures, LoadPoint, Refused
from mcp_core.decision.facts import CONFIRMATION, RunFacts, fidelity_facts, numerics_of
from mcp_core.decision.missing import Ranked, command_for, missing_runs
from mcp_core.decision.traffic import traffic_key
from mcp_core.evaluation.attainment import goodput
from mcp_core.evaluation.request_samples import RequestSamples
from mcp_core.goal import Goal, Objective
from mcp_core.hardware import Hardware
from mcp_core.results import StoredFidelity

__all__ = ["Samples", "evidence_of", "recommend"]

# Only these are told apart from the winner by resampling; what is further off is not near.
NEAR = 0.25
_MOST_COMPARED = 20
_DETAILED = 5
_QUANTITY: dict[Objective, Quantity] = {
    "cost": QUANTITIES["output_tok_s"],
    "throughput": QUANTITIES["output_tok_s"],
    "latency": QUANTITIES["e2e_ms"],
}
# Refusals by a figure first, then what is not known, then what is about something else.
_CAUSES: tuple[Cause, ...] = get_args(Cause)
_LEVELS: tuple[Evidence, ...] = ("none", "predicted", "probed", "measured", "confirmed")


class Samples(Protocol):
    """Where request samples come from; ``Store.samples`` is one."""

    def __call__(self, run_ids: Sequence[str], /) -> Mapping[str, RequestSamples]:
        """Those there are, by Run."""


def recommend(
    goal: Goal,
    facts: Sequence[RunFacts],
    samples: Samples,
    hardware: Hardware,
    fidelities: Sequence[StoredFidelity] = (),
) -> Decision:
    """Decide. ``facts`` are newest first; ``hardware`` is this machine; ``fidelities`` were judged apart from Runs.

    Raises ModelNotFound for a workload that is no preset's.
    """
    facts = [each for each in facts if not any(reason.startswith(CONFIRMATION) for reason in each.reasons)]
    scene = _scene(goal, facts, hardware, fidelities)
    if scene is None:
        return Decision(goal=goal, answer=answer.NOTHING_MEASURED, notes=(answer.HOW_TO_BEGIN,))
    found = candidates(facts, scene)
    ranked = _ranked([each for each in found if not each.broken], goal)
    leader, others, verdicts = _winner_first(ranked, goal, samples, scene)
    refused = sorted((each for each in found if each.broken), key=lambda each: _CAUSES.index(each.broken[0].cause))
    missing = missing_runs(leader, others, verdicts, refused, scene)
    choices = _choices([*([leader] if leader else []), *others], scene, samples)
    winner, runners_up = (choices[0], tuple(choices[1:])) if choices else (None, ())
    decision = Decision(
        goal=goal,
        answer="",
        workload=scene.workload,
        device=scene.device,
        load_kind=scene.load_kind,
        load=scene.asked,
        winner=winner,
        runners_up=runners_up,
        equivalent=_told(runners_up, verdicts, "equivalent"),
        undecided=_told(runners_up, verdicts, "undecided"),
        refused=tuple(_refused(each, scene) for each in refused),
        missing=missing,
        evidence=winner.evidence if winner else "none",
        notes=answer.notes(scene, found, hardware),
    )
    return decision.model_copy(update={"answer": answer.sentence(decision, found)})


def evidence_of(text: str) -> Evidence:
    """The level that a Run's evidence names in words."""
    return next((level for level in reversed(_LEVELS) if text.startswith(level)), "none")


def _scene(
    goal: Goal, facts: Sequence[RunFacts], hardware: Hardware, fidelities: Sequence[StoredFidelity]
) -> Scene | None:
    """What is decided for; None where nothing was ever measured."""
    measured = [each for each in facts if each.measured]
    if not measured:
        return None
    traffic = goal.traffic()
    key = (
        traffic_key(traffic)
        if traffic
        else _commonest(_at_load(_serious(measured), goal), lambda each: each.traffic)
    )
    under = [each for each in measured if each.traffic == key] or measured
    name = traffic.name if traffic else next(each.workload for each in under if each.traffic == key)
    device = goal.device or _device(under, goal, hardware)
    newest_first = [each for each in under if each.device == device]
    asked = _at_load(newest_first, goal)
    models = frozenset(goal.models or [_commonest(asked or under, lambda each: each.model)])
    versions: dict[str, str] = {}
    for each in newest_first:
        versions = dict(each.versions) | versions
    return Scene(goal, key, name, device, models, versions, _judged_apart(fidelities, hardware))


def _serious(measured: Sequence[RunFacts]) -> Sequence[RunFacts]:
    """Without smoke tests, as long as there is anything else."""
    return [each for each in measured if not any("smoke" in reason for reason in each.reasons)] or measured


def _at_load(measured: Sequence[RunFacts], goal: Goal) -> Sequence[RunFacts]:
    """Of the asked load or of more, as long as there are any: the others can only say that it was not measured."""
    kind, asked = ("rate_s", goal.rate_s) if goal.rate_s is not None else ("concurrency", goal.users)
    if asked is None:
        return measured
    return [each for each in measured if each.load_kind == kind and (each.load or 0) >= asked] or measured


def _device(under: Sequence[RunFacts], goal: Goal, hardware: Hardware) -> str:
    """This machine's with the most configurations, else the one with the most anywhere."""
    allowed = [each for each in under if goal.gpus != 0 or each.device_kind == "cpu"] or list(under)
    names = {device.name for device in hardware.devices}
    here = [each for each in allowed if each.device in names]
    return _commonest(here or allowed, lambda each: each.device)


def _commonest(facts: Sequence[RunFacts], key: Callable[[RunFacts], str]) -> str:
    """The key under which the most configurations are; the newest of equals."""
    found: dict[str, set[str]] = {}
    for each in facts:
        found.setdefault(key(each), set()).add(each.configuration)
    return max(found, key=lambda name: len(found[name]))


def _judged_apart(
    fidelities: Sequence[StoredFidelity], hardware: Hardware
) -> dict[str, Mapping[str, float | str | None]]:
    """By numerics key, the newest; what could not be measured is left out."""
    found: dict[str, Mapping[str, float | str | None]] = {}
    for each in fidelities:
        known = fidelity_facts(each.fidelity)
        if known is not None and "why" not in known:
            found.setdefault(numerics_of(each.recipe, hardware), known)
    return found


def _ranked(meeting: Iterable[Candidate], goal: Goal) -> list[Ranked]:
    """Best first by the objective's own figure; what lacks it comes last."""
    found = []
    for candidate in meeting:
        assert candidate.point is not None, "who breaks nothing was judged at a load"
        found.append(Ranked(candidate, candidate.point, _score(candidate.point, goal)))
    return sorted(found, key=lambda each: (each.score, each.memory_bytes, each.candidate.facts.id))


def _score(point: Point, goal: Goal) -> float:
    """Less is better. Without a price the device's time is what tokens cost."""
    figures = [value for each in point.runs if (value := _QUANTITY[goal.objective].of(each)) is not None]
    if not figures:
        return float("inf")
    figure = fmean(figures)
    if goal.objective == "latency":
        return figure
    cost = cost_per_million_tokens(goal, point.runs) if goal.objective == "cost" else None
    return cost or 1 / figure if figure else float("inf")


def _winner_first(
    ranked: list[Ranked], goal: Goal, samples: Samples, scene: Scene
) -> tuple[Ranked | None, list[Ranked], dict[str, Comparison]]:
    """The winner, the others in their order, and how each near one compares with the winner, by its Run."""
    if not ranked:
        return None, [], {}
    verdicts = _verdicts(ranked[0], ranked[1:], goal, samples)
    equal = [each for each in ranked[1:] if _verdict(each, verdicts) == "equivalent"]
    winner = _of_equals([ranked[0], *equal], scene)
    others = [each for each in ranked if each is not winner]
    if winner is not ranked[0]:
        verdicts = _verdicts(winner, others, goal, samples)
    return winner, others, verdicts


def _verdict(each: Ranked, verdicts: Mapping[str, Comparison]) -> str:
    found = verdicts.get(each.candidate.facts.id)
    return found.verdict if found else ""


def _verdicts(winner: Ranked, others: Sequence[Ranked], goal: Goal, samples: Samples) -> dict[str, Comparison]:
    near = [each for each in others if each.score <= winner.score * (1 + NEAR)][:_MOST_COMPARED]
    quantity = _QUANTITY[goal.objective]
    ids = [facts.id for each in (winner, *near) for facts in each.point.runs] if quantity.metric else []
    known = samples(ids) if ids else {}
    return {each.candidate.facts.id: compare(winner.point.runs, each.point.runs, known, quantity) for each in near}


def _of_equals(equals: Sequence[Ranked], scene: Scene) -> Ranked:
    """Smaller memory by more than 3 %, then higher fidelity beyond its error, then the objective."""
    best = equals[0]
    for each in equals[1:]:
        share = each.memory_bytes / best.memory_bytes if best.memory_bytes < math.inf else 1.0
        if share < 1 - EQUIVALENT or (share <= 1 + EQUIVALENT and _is_closer(each, best, scene)):
            best = each
    return best


def _is_closer(one: Ranked, other: Ranked, scene: Scene) -> bool:
    """Whether its KL is lower beyond both errors: a near-tie is left, and so is a bound beside a figure."""
    (kl, se, listed), (other_kl, other_se, other_listed) = (_kl(each, scene) for each in (one, other))
    if kl is None or other_kl is None or listed != other_listed:
        return False
    return other_kl - kl > 2 * math.hypot(se, other_se)


def _kl(each: Ranked, scene: Scene) -> tuple[float | None, float, float | str | None]:
    """Mean, standard error, and by how many tokens it is told."""
    found = fidelity_of(each.point.runs, scene)
    kl, se = (found.get(name) for name in ("kl", "kl_se"))
    mean = float(kl) if isinstance(kl, float | int) else None
    return mean, float(se) if isinstance(se, float | int) else 0.0, found.get("top_k")


def _choices(ranked: Sequence[Ranked], scene: Scene, samples: Samples) -> list[Choice]:
    detailed = [point for each in ranked[:_DETAILED] for point in each.candidate.points]
    points = [*detailed, *(each.point for each in ranked[_DETAILED:])]
    known = samples([facts.id for point in points for facts in point.runs])
    return [_choice(each, scene, known) for each in ranked]


def _choice(each: Ranked, scene: Scene, known: Mapping[str, RequestSamples]) -> Choice:
    candidate, point = each.candidate, each.point
    facts = candidate.facts
    strongest = max((run.evidence for run in point.runs), key=lambda text: _LEVELS.index(evidence_of(text)))
    return Choice(
        run=facts.id,
        runs=tuple(run.id for run in point.runs),
        name=candidate.name,
        recipe=candidate.recipe,
        workload=candidate.workload,
        load=point.load,
        starts=point.starts,
        figures=_figures(point, scene, known),
        evidence=evidence_of(strongest),
        evidence_text=strongest,
        points=tuple(_load_point(one, scene.goal, known) for one in candidate.points),
        capacity=candidate.capacity,
        broken_at=candidate.broken_at,
    )


def _figures(point: Point, scene: Scene, known: Mapping[str, RequestSamples]) -> Figures:
    runs, facts = point.runs, point.runs[0]
    attainment, goodput_s = _attained(point, scene.goal, known)
    fidelity = {
        name: value for name, value in fidelity_of(runs, scene).items() if name in ("kl", "kl_over_floor", "top1")
    }
    return Figures.model_validate(
        {
            "output_tok_s": _mean(run.output_tok_s for run in runs),
            "requests_s": _mean(run.requests_s for run in runs),
            "ttft_ms": _mean(run.figure("ttft_ms", "p50") for run in runs),
            "tpot_ms": _mean(run.figure("tpot_ms", "p50") for run in runs),
            "attainment": attainment,
            "goodput_s": goodput_s,
            "failed_share": _mean(run.failed_share for run in runs),
            "peak_bytes": facts.peak_bytes,
            "kv_tokens": facts.kv_tokens,
            "energy_j_per_token": _mean(run.energy_j_per_token for run in runs),
            "cost_per_million_tokens": cost_per_million_tokens(scene.goal, runs),
            "cost_per_request": cost_per_request(scene.goal, runs),
            "within": point.held,
            **fidelity,
        }
    )


def _load_point(point: Point, goal: Goal, known: Mapping[str, RequestSamples]) -> LoadPoint:
    attainment, goodput_s = _attained(point, goal, known)
    return LoadPoint(
        load=point.load,
        run=point.runs[0].id,
        meets=point.meets,
        output_tok_s=_mean(run.output_tok_s for run in point.runs),
        attainment=attainment,
        goodput_s=goodput_s,
    )


def _attained(point: Point, goal: Goal, known: Mapping[str, RequestSamples]) -> tuple[float | None, float | None]:
    found = [goodput(goal.slo, known[run.id], run.duration_s or 0.0) for run in point.runs if run.id in known]
    return _mean(share for share, _ in found), _mean(rate for _, rate in found)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _told(choices: Sequence[Choice], verdicts: Mapping[str, Comparison], verdict: str) -> tuple[str, ...]:
    return tuple(each.run for each in choices if (found := verdicts.get(each.run)) and found.verdict == verdict)


def _refused(candidate: Candidate, scene: Scene) -> Refused:
    first = candidate.broken[0]
    return Refused(
        run=candidate.facts.id,
        name=candidate.name,
        recipe=candidate.recipe,
        cause=first.cause,
        reason="; ".join(dict.fromkeys(each.text for each in candidate.broken)),
        limit=first.limit,
        figure=first.figure,
        bound=first.bound,
        command=command_for(candidate, scene),
    )
