"""Confirmation: what was predicted of a deployment beside what was measured on it, and what follows.

This file does not know how the deployment was started or measured (``evaluation/confirm_job.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mcp_core.decision.decision import Decision
from mcp_core.decision.shipment import Shipment
from mcp_core.decision.store import Store
from mcp_core.evaluation.attainment import attain
from mcp_core.results import Measurement, Run, now

__all__ = ["TOLERANCE", "Beside", "Confirmation", "confirm", "confirmed_decision", "raise_evidence"]

# Without limits to hold, a deployment is what was predicted when its throughput is not lower by more than this.
TOLERANCE = 0.10
_MOST_FAILED = 0.01
# How reasons of a Run begin that say what else was at work while it was measured.
_DISTURBED = ("noisy", "throttled", "shared device", "client-limited")


class Beside(BaseModel):
    """One figure, predicted and measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    unit: str
    predicted: float | None
    measured: float | None
    error: float | None = Field(default=None, description="measured / predicted - 1; null where either is lacking.")


class Confirmation(BaseModel):
    """What came of measuring a deployment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    created: datetime = Field(default_factory=now)
    target: str
    engine: str = Field(description="The engine that was measured.")
    url: str | None = Field(
        default=None, description="Of a server that ran already; null: it was started for this."
    )
    of_run: str = Field(description="The Run that predicted.")
    run: str = Field(description="The Run that was measured now.")
    figures: tuple[Beside, ...]
    limits: tuple[str, ...] = Field(default=(), description='Every latency limit: "p95 TTFT 312 ≤ 500 ms".')
    holds: bool = Field(description="Whether the answer is confirmed.")
    why: str = Field(description="Why it is, or is not.")

    @property
    def evidence(self) -> str:
        """The level that it raises an answer to."""
        return f"confirmed on {self.engine}"


def confirm(shipment: Shipment, measured: Run, target: str, engine: str, url: str | None = None) -> Confirmation:
    """Judge a Run of the deployment.

    It is confirmed when it ended well, failed at most 1 % of its requests (or what the Goal allows), and holds
    every limit of the Goal; without limits, when its throughput is at most 10 % lower. A smoke test and a probe are
    never confirmed. Where it does not hold and something disturbed the measurement, that is said: it need not be
    the deployment's fault.
    """
    problems = list(_problems(shipment, measured))
    holds = not problems
    return Confirmation(
        target=target,
        engine=engine,
        url=url,
        of_run=shipment.run_id,
        run=measured.id,
        figures=tuple(_figures(shipment, measured.measurement)),
        limits=_limits(shipment, measured.measurement),
        holds=holds,
        why=_why(shipment, measured, engine) if holds else _why_not(problems, measured),
    )


def confirmed_decision(decision: Decision, confirmation: Confirmation) -> Decision:
    """The Decision with its winner's evidence raised, as a recommendation; unchanged where it does not hold."""
    winner = decision.winner
    if winner is None or not confirmation.holds:
        return decision
    raised = winner.model_copy(update={"evidence": "confirmed", "evidence_text": confirmation.evidence})
    answer = _as_recommendation(decision.answer, winner.evidence_text, confirmation.evidence)
    return decision.model_copy(update={"winner": raised, "evidence": "confirmed", "answer": answer})


def raise_evidence(store: Store, run_id: str, evidence: str) -> Run | None:
    """Write the level into the stored Run, its records kept; None where there is no such Run. Raises StoreError."""
    run = store.get(run_id)
    if run is None:
        return None
    raised = run.model_copy(update={"evidence": evidence})
    store.add(raised, store.records(run_id), store.telemetry(run_id))
    return raised


def _as_recommendation(answer: str, before: str, after: str) -> str:
    """``answer.py`` begins with the evidence, then says what the winner is."""
    begun = f"{before[:1].upper()}{before[1:]}, a candidate: "
    said = answer.removeprefix(begun) if answer.startswith(begun) else answer
    return f"{after[:1].upper()}{after[1:]}, recommended: {said}"


def _problems(shipment: Shipment, measured: Run) -> Iterator[str]:
    found = measured.measurement
    if measured.status != "ok" or found is None:
        yield measured.failure.message.rstrip(".") if measured.failure else f"the measurement was {measured.status}"
        return
    if shipment.workload.smoke_test:
        yield f"{shipment.workload.name} is a smoke test: too small to decide anything"
    if shipment.evidence.startswith("probed"):
        yield "it was only probed, and a short look decides nothing: measure it whole, then confirm that"
    most = shipment.decision.goal.failures_max if shipment.decision else _MOST_FAILED
    share = found.failed / max(1, found.failed + found.completed)
    if share > most:
        yield f"{share:.1%} of requests failed > {most:.1%}"
    if shipment.decision is not None:
        yield from (each.text for each in attain(shipment.decision.goal.slo, found).broken)
        yield from _slower_than_the_next(shipment.decision, found)
    if shipment.decision is None or not shipment.decision.goal.slo.limits():
        yield from _slower(shipment, found)


def _slower(shipment: Shipment, found: Measurement) -> Iterator[str]:
    before = _predicted(shipment).get("output tokens/s")
    if before and found.output_tok_s is not None and found.output_tok_s < before * (1 - TOLERANCE):
        lower = 1 - found.output_tok_s / before
        yield f"{found.output_tok_s:,.1f} output tokens/s are {lower:.0%} below the predicted"


def _slower_than_the_next(decision: Decision, found: Measurement) -> Iterator[str]:
    """What was chosen for its throughput must not fall behind the runner-up, which meets the limits too."""
    second = decision.runner_up
    figure = second.figures.output_tok_s if second else None
    if second is None or figure is None or found.output_tok_s is None or decision.goal.objective == "latency":
        return
    if found.output_tok_s < figure and second.run not in decision.equivalent:
        rate = f"{found.output_tok_s:,.1f} output tokens/s"
        yield f"{rate} are fewer than the runner-up's {figure:,.1f} ({second.name})"


def _limits(shipment: Shipment, found: Measurement | None) -> tuple[str, ...]:
    if shipment.decision is None or found is None:
        return ()
    return tuple(each.text for each in attain(shipment.decision.goal.slo, found).judged)


def _why_not(problems: list[str], measured: Run) -> str:
    said = f"Not confirmed: {'; '.join(problems)}."
    disturbed = [reason for reason in measured.comparable.reasons if reason.startswith(_DISTURBED)]
    if measured.status != "ok" or not disturbed:
        return said
    return f"{said} It was disturbed ({'; '.join(disturbed)}): end what else runs there and confirm again."


def _why(shipment: Shipment, measured: Run, engine: str) -> str:
    limits = shipment.decision is not None and shipment.decision.goal.slo.limits()
    found = f"Measured on {engine}{', it holds every latency limit' if limits else ''}"
    rate = next((each for each in _figures(shipment, measured.measurement) if each.name == "output tokens/s"), None)
    if rate is None or rate.measured is None or rate.error is None:
        return f"{found}."
    return f"{found}: {rate.measured:,.1f} output tokens/s, {rate.error:+.0%} against the prediction."


def _figures(shipment: Shipment, found: Measurement | None) -> Iterator[Beside]:
    predicted, measured = _predicted(shipment), _named(found)
    for name, unit in _UNITS.items():
        before, after = predicted.get(name), measured.get(name)
        if before is not None or after is not None:
            error = after / before - 1 if before and after is not None else None
            yield Beside(name=name, unit=unit, predicted=before, measured=after, error=error)


_UNITS = {
    "output tokens/s": "1/s",
    "requests/s": "1/s",
    "p50 TTFT": "ms",
    "p95 TTFT": "ms",
    "p50 TPOT": "ms",
    "p95 TPOT": "ms",
    "p50 E2E": "ms",
    "failed requests": "",
    "prompt tokens a request": "",
    "output tokens a request": "",
}


def _predicted(shipment: Shipment) -> dict[str, float | None]:
    if shipment.measurement is not None:
        return _named(shipment.measurement)
    winner = shipment.decision.winner if shipment.decision else None
    if winner is None:
        return {}
    figures = winner.figures
    return {
        "output tokens/s": figures.output_tok_s,
        "requests/s": figures.requests_s,
        "p50 TTFT": figures.ttft_ms,
        "p50 TPOT": figures.tpot_ms,
    }


def _named(found: Measurement | None) -> dict[str, float | None]:
    if found is None:
        return {}
    return {
        "output tokens/s": found.output_tok_s,
        "requests/s": found.requests_s,
        "p50 TTFT": found.ttft_ms.p50,
        "p95 TTFT": found.ttft_ms.p95,
        "p50 TPOT": found.tpot_ms.p50,
        "p95 TPOT": found.tpot_ms.p95,
        "p50 E2E": found.e2e_ms.p50,
        "failed requests": float(found.failed),
        "prompt tokens a request": found.prompt_tokens / found.completed if found.completed else None,
        "output tokens a request": found.output_tokens / found.completed if found.completed else None,
    }
