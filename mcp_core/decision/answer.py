"""Answer: a decision in one sentence, and notes on what limits it.

Only an answer that was confirmed on the engine that is exported to is worded as a recommendation. This file does
not decide anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from mcp_core.decision.candidates import UNITS, Candidate, Scene
from mcp_core.decision.decision import Choice, Decision
from mcp_core.decision.figures import figure
from mcp_core.decision.limits import Broken
from mcp_core.evaluation.comparability import OTHERS_USED
from mcp_core.hardware import Hardware

__all__ = ["HOW_TO_BEGIN", "NOTHING_MEASURED", "notes", "sentence"]

NOTHING_MEASURED = "Nothing has been measured yet, so there is nothing to decide by."
HOW_TO_BEGIN = "Measure a model first: the Measure page, or mcp-core bench RECIPE WORKLOAD."
# By the word that begins the reason why figures do not count: what helps before they are measured again.
_REMEDIES = {
    "noisy": "end what else runs on that machine",
    "not pinned": "leave the load generator a core of its own, by fewer threads",
    "client-limited": "give the load generator more of the machine by fewer threads, users or requests/s, or send "
    "the load from another machine (mcp-core bench --url)",
    "throttled": "see to cooling and the power limit",
    "shared device": "end what else holds that device",
}


def sentence(decision: Decision, found: Sequence[Candidate]) -> str:
    """What the decision says, the evidence first."""
    winner = decision.winner
    if winner is None:
        return _nobody(decision, found)
    stand = "recommended" if decision.is_recommendation else "a candidate"
    said = f"{_capital(winner.evidence_text)}, {stand}: {winner.name} {_serves(decision, winner)}{_cost(winner)}"
    return f"{said}{_not_told(decision)}."


def notes(scene: Scene, found: Sequence[Candidate], hardware: Hardware) -> tuple[str, ...]:
    """What limits the answer."""
    return tuple(_notes(scene, found, hardware))


def _serves(decision: Decision, winner: Choice) -> str:
    unit, speed = UNITS[decision.load_kind], winner.figures.output_tok_s
    at = " within every limit" if decision.goal.has_limits else ""
    at += f" at {speed:,.0f} output tok/s" if speed is not None else ""
    if decision.load is not None:
        beyond = "" if winner.load == decision.load else f", measured at {winner.load:g}"
        return f"serves {decision.load:g} {unit} of {decision.workload}{at}{beyond}"
    top = "no more was measured" if winner.broken_at is None else f"{winner.broken_at:g} break a limit"
    return f"serves {winner.load:g} {unit} of {decision.workload}{at}; {top}"


def _cost(winner: Choice) -> str:
    cost = winner.figures.cost_per_million_tokens
    return "" if cost is None else f", {figure(cost, digits=3)} per million output tokens"


def _not_told(decision: Decision) -> str:
    names = [each.name for each in decision.runners_up if each.run in decision.undecided]
    if not names:
        return ""
    rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"; the data cannot tell it from {names[0]}{rest}"


def _nobody(decision: Decision, found: Sequence[Candidate]) -> str:
    if not any(each.point for each in found):
        why, times = Counter(each.broken[0].text for each in found).most_common(1)[0]
        of = "All" if times == len(found) else f"{times} of {len(found)}"
        return f"No configuration has a figure that counts here. {of}: {why}."
    name, least = _nearest(found)
    if least is None:
        return "No measured configuration is known to meet the Goal: the figures that its limits need are lacking."
    models = " or ".join(sorted({each.facts.model for each in found if each.point}))
    return (
        f"No measured configuration of {models} meets the Goal under {decision.workload}. "
        f"Nearest is {name}: {least.text}."
    )


def _nearest(found: Sequence[Candidate]) -> tuple[str, Broken | None]:
    """The candidate whose worst limit is the least broken."""
    worst: list[tuple[float, str, Broken]] = []
    for each in found:
        measured = [(one.ratio or float("inf"), one) for one in each.broken if one.is_measured]
        if measured and each.point is not None:
            ratio, broken = max(measured, key=lambda pair: pair[0])
            worst.append((ratio, each.name, broken))
    if not worst:
        return "", None
    _, name, broken = min(worst, key=lambda one: one[0])
    return name, broken


def _notes(scene: Scene, found: Sequence[Candidate], hardware: Hardware) -> Iterator[str]:
    judged = [each for each in found if each.point is not None]
    yield from _uncounted(found)
    if judged and not any(not each.broken for each in judged):
        yield from _excluding(judged)
    if not scene.device:
        yield "The Runs do not name their device: the answer holds for where they were made."
    elif scene.device not in {device.name for device in hardware.devices}:
        yield f"This machine has no {scene.device}: the answer holds for where the Runs were made."
    elif since := _since(scene, hardware):
        yield f"This machine has changed since the Runs: {since}. Measure again, or mcp-core verify the decision."
    cards = {run.card for each in judged if each.point for run in each.point.runs if run.card}
    if len(cards) > 1:
        yield f"The Runs are of {len(cards)} cards of one kind: what differs between cards is in their figures."
    yield from _costs(scene, judged)
    if any(each.runs[0].random_weights for each in judged):
        yield "Random weights: speed and memory are those of the shape; quality is not measurable."


def _costs(scene: Scene, judged: Sequence[Candidate]) -> Iterator[str]:
    """What a price that was given did not come into."""
    goal = scene.goal
    if goal.energy_price is None:
        return
    if goal.price_per_hour is None:
        yield "A price of energy alone makes no cost: price_per_hour is lacking."
        return
    points = [each.point for each in judged if each.point is not None and not each.broken]
    lacking = sum(all(run.energy_j_per_token is None for run in point.runs) for point in points)
    if lacking and lacking == len(points):
        yield "Energy was not measured: costs are of time alone."
    elif lacking:
        yield f"Energy of {lacking} of {len(points)} was not measured: their cost is of time alone."


def _uncounted(found: Sequence[Candidate]) -> Iterator[str]:
    """What helps where measured figures do not count because of how they were taken."""
    firsts = [each.broken[0].text for each in found if each.broken and each.broken[0].cause == "not comparable"]
    # A load generator that others kept waiting is no load generator that was asked for too much.
    words = Counter(
        "noisy" if OTHERS_USED in text else text.removeprefix("not comparable: ").partition(":")[0]
        for text in firsts
    )
    for word, count in words.most_common():
        if word in _REMEDIES:
            yield f"{count} of {len(found)} do not count ({word}): {_REMEDIES[word]}, then measure again."


def _excluding(judged: Sequence[Candidate]) -> Iterator[str]:
    """Limits that exclude everything, by how much at least; where there is none, which together do."""
    limits = {one.limit for each in judged for one in each.broken if one.is_measured}
    alone = False
    for limit in sorted(limits):
        broken = [
            next((one for one in each.broken if one.limit == limit and one.is_measured), None) for each in judged
        ]
        if None in broken:
            continue
        alone = True
        best = min((one for one in broken if one), key=lambda one: one.ratio or float("inf"))
        times = f", {figure(best.ratio, digits=3)} times off" if best.ratio else ""
        yield f"{limit} alone excludes every configuration; the best: {best.text}{times}."
    if not alone and len(limits) > 1:
        yield f"No single limit excludes everything; together {' and '.join(sorted(limits))} do."


def _since(scene: Scene, hardware: Hardware) -> str:
    now = {**hardware.libraries, **({"driver": hardware.driver} if hardware.driver else {})}
    changed = [
        f"{name} {then} → {now[name]}" for name, then in scene.versions.items() if now.get(name, then) != then
    ]
    return ", ".join(changed)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
