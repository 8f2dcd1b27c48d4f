"""Verification: whether a Decision still holds on this machine, by measuring winner and runner-up again.

In turn, each time in a fresh process and with new prompts, then decided anew by these Runs alone. Fidelity is not
judged again: the numbers are the same. This file does not know how one Run is measured.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mcp_core.decision.decision import Choice, Decision, Refused
from mcp_core.decision.facts import RunFacts
from mcp_core.decision.recommend import recommend
from mcp_core.errors import InputError
from mcp_core.evaluation.request_samples import RequestSamples
from mcp_core.goal import FidelityLimits, Goal
from mcp_core.hardware import Hardware
from mcp_core.recipe import Recipe
from mcp_core.results import RequestRecord, Run, now
from mcp_core.workload import Workload

__all__ = ["Change", "MeasureOne", "Verification", "verify"]

# A Recipe and Workload in a fresh process → its Run and request records.
MeasureOne = Callable[[Recipe, Workload], Awaitable[tuple[Run, Sequence[RequestRecord]]]]

# Of a figure: more than clocks and neighbours do.
_NOTABLE = 0.10
_FIGURES = {"output_tok_s": ("output tokens/s", "{:,.1f}"), "ttft_ms": ("p50 TTFT", "{:,.1f} ms")} | {
    "tpot_ms": ("p50 TPOT", "{:,.2f} ms")
}


class Change(BaseModel):
    """What is otherwise than when it was decided."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Which configuration, or what of the machine.")
    text: str = Field(description='As "p50 TTFT 310.0 ms → 612.0 ms (+97 %)".')
    breaks: bool = Field(default=False, description="Whether the choice no longer holds because of it.")


class Verification(BaseModel):
    """The answer of ``mcp-core verify``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    created: datetime = Field(default_factory=now)
    holds: bool = Field(
        description="False also where no Run counts, on a noisy machine; true where the two cannot be told apart. "
        "``why`` says which."
    )
    told: bool = Field(default=True, description="False where no Run of the winner counts: measure again.")
    why: str = Field(description="One sentence.")
    changes: tuple[Change, ...] = ()
    seed: int = Field(description="Of the prompts.")
    winner_runs: tuple[str, ...]
    runner_up_runs: tuple[str, ...] = ()
    decision: Decision = Field(description="Made by these Runs alone.")


@dataclass(frozen=True, slots=True)
class _Measured:
    """What was measured anew of one choice."""

    choice: Choice
    runs: Sequence[Run]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(run.id for run in self.runs)


async def verify(
    decision: Decision, measure_one: MeasureOne, hardware: Hardware, *, seed: int, starts: int
) -> Verification:
    """Measure A B A B, ``starts`` times each, and decide. Raises InputError for a Decision without a winner."""
    winner = decision.winner
    if winner is None:
        raise InputError("This Decision has no winner to verify.", "mcp-core recommend GOAL --out FILE makes one.")
    choices = [winner, *([decision.runner_up] if decision.runner_up else [])]
    found: dict[str, list[tuple[Run, Sequence[RequestRecord]]]] = {choice.run: [] for choice in choices}
    for start in range(starts):
        for choice in choices:
            asked = choice.workload.replace({"seed": seed, "repeat": start})
            found[choice.run].append(await measure_one(choice.recipe, asked))
    sides = [_Measured(choice, [run for run, _ in found[choice.run]]) for choice in choices]
    samples = {run.id: RequestSamples.of(records) for each in found.values() for run, records in each if records}
    return _judge(decision, sides, samples, hardware, seed)


def _judge(
    decision: Decision,
    sides: Sequence[_Measured],
    samples: Mapping[str, RequestSamples],
    hardware: Hardware,
    seed: int,
) -> Verification:
    facts = sorted((RunFacts.of(run) for side in sides for run in side.runs), key=lambda each: each.created)
    goal = _goal(decision, facts[0])
    anew = recommend(
        goal, facts[::-1], lambda ids: {each: samples[each] for each in ids if each in samples}, hardware
    )
    winner, others = sides[0], sides[1:]
    broken = _what_broke(anew, winner)
    changes = [*_machine(decision, facts[0]), *(change for side in sides for change in _drift(side))]
    if broken:
        changes.insert(0, Change(name=winner.choice.name, text=broken, breaks=True))
    return Verification(
        holds=not broken,
        told=not broken or _is_told(anew, winner),
        why=_ended(broken, anew, winner) if broken else _still(anew, winner),
        changes=tuple(changes),
        seed=seed,
        winner_runs=winner.ids,
        runner_up_runs=others[0].ids if others else (),
        decision=anew,
    )


def _goal(decision: Decision, measured: RunFacts) -> Goal:
    """The same Goal for what was measured here."""
    changes = {"fidelity": FidelityLimits(), "device": measured.device, "workload": decision.goal.workload}
    return decision.goal.model_copy(update=changes)


def _what_broke(anew: Decision, winner: _Measured) -> str:
    """Why the winner is none any more; empty where it is, or cannot be told from the new one."""
    if anew.winner is not None and _is(anew.winner, winner):
        return ""
    refused = next((each for each in anew.refused if each.run in winner.ids), None)
    if refused is not None:
        return _words(refused)
    again = next((each for each in anew.runners_up if _is(each, winner)), None)
    if again is None or anew.winner is None:
        return _failures(winner) or anew.answer.rstrip(".")
    if again.run in (*anew.equivalent, *anew.undecided) and not _is_ahead(anew.winner, again):
        return ""
    return f"{anew.winner.name} is better now: {_rate(anew.winner)} against {_rate(again)}"


def _is_ahead(first: Choice, second: Choice) -> bool:
    """Whether it is by more than clocks and neighbours do, where no pairs tell: each at a load of its own."""
    one, other = first.figures.output_tok_s, second.figures.output_tok_s
    return first.load != second.load and bool(one and other and one / other - 1 > _NOTABLE)


def _is(choice: Choice, side: _Measured) -> bool:
    return bool(set(choice.runs) & set(side.ids))


def _words(refused: Refused) -> str:
    named = refused.cause in ("slo", "failures", "memory") or refused.reason.startswith(refused.cause)
    return refused.reason if named else f"{refused.cause}: {refused.reason}"


def _ended(broken: str, anew: Decision, winner: _Measured) -> str:
    """A limit that broke ends the choice; Runs that count for nothing leave it open, which is no yes either."""
    if not _is_told(anew, winner):
        return f"It cannot be told whether the choice holds: {broken}."
    return f"The choice no longer holds: {broken}."


def _is_told(anew: Decision, winner: _Measured) -> bool:
    refused = next((each for each in anew.refused if each.run in winner.ids), None)
    return refused is None or refused.cause not in ("not comparable", "stale", "other hardware")


def _failures(side: _Measured) -> str:
    return next((run.failure.message.rstrip(".") for run in side.runs if run.failure is not None), "")


def _rate(choice: Choice) -> str:
    rate = choice.figures.output_tok_s
    return "unmeasured" if rate is None else f"{rate:,.1f} output tokens/s"


def _still(anew: Decision, winner: _Measured) -> str:
    if anew.winner is not None and _is(anew.winner, winner):
        return f"The choice holds: {winner.choice.name} is still first."
    return (
        f"The choice holds: {winner.choice.name} cannot be told from {anew.winner.name if anew.winner else 'none'}."
    )


def _machine(decision: Decision, measured: RunFacts) -> Iterator[Change]:
    if decision.device and decision.device != measured.device:
        yield Change(name="device", text=f"decided for {decision.device}, measured on {measured.device}")


def _drift(side: _Measured) -> Iterator[Change]:
    """Figures that moved by more than a tenth."""
    for name, (label, form) in _FIGURES.items():
        before: float | None = getattr(side.choice.figures, name)
        values = [value for run in side.runs if (value := _figure(run, name)) is not None]
        if before and values and abs((after := sum(values) / len(values)) / before - 1) > _NOTABLE:
            text = f"{label} {form.format(before)} → {form.format(after)} ({after / before - 1:+.0%})"
            yield Change(name=side.choice.name, text=text)


def _figure(run: Run, name: str) -> float | None:
    found = run.measurement
    if found is None:
        return None
    return {"output_tok_s": found.output_tok_s, "ttft_ms": found.ttft_ms.p50, "tpot_ms": found.tpot_ms.p50}[name]
