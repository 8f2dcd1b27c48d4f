"""The fidelity stage of a sweep: each configuration that can still win is judged once, and refused over a limit.

The answer is the fidelity job's own, known earlier or measured now, and goes to every Run of the configuration.
A server of another engine is judged through one like it, started by the job with the same command line.
This file does not know how fidelity is measured (``fidelity.py``) or which cells are asked for (``sweep.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcp_core import conflicts
from mcp_core.decision.facts import fidelity_facts
from mcp_core.decision.limits import Broken, judged_fidelity
from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import CellRecord, CellState, SweepRun
from mcp_core.decision.sweeps import Sweeps
from mcp_core.errors import Cancelled, FidelityLost, McpError, StoreError
from mcp_core.evaluation.benchmark import unmeasured
from mcp_core.evaluation.fidelity_plan import Plan, make_plan
from mcp_core.evaluation.known_fidelity import known_fidelity
from mcp_core.evaluation.served_fidelity import STAGES
from mcp_core.hardware import Hardware
from mcp_core.job_child import JOB_COMMAND, run_child
from mcp_core.recipe import Recipe
from mcp_core.results import Failure, Fidelity, Run
from mcp_core.sweep_plan import SweepPlan
from mcp_core.workload import Workload

__all__ = ["FidelityStage", "refusal_of"]

# fraction of one judgement, message
Tell = Callable[[float | None, str], None]
_LESS_LOSS = "Choose a scheme that loses less, or a wider limit."
_NO_LIMIT = "Without a fidelity limit it stays in the race."


@dataclass(frozen=True, slots=True)
class _Answer:
    """``error`` says why measuring failed; the Fidelity then says the same."""

    fidelity: Fidelity
    error: McpError | None = None


class FidelityStage:
    """Answers by what was asked: cells that differ in batching alone share one, and nothing is measured twice."""

    def __init__(
        self,
        store: Store,
        sweep_id: str,
        plan: SweepPlan,
        hardware: Hardware,
        hub_token: str | None = None,
        store_url: str | None = None,
        command: Sequence[str] = JOB_COMMAND,
    ) -> None:
        self._store, self._sweeps = store, Sweeps(store)
        self._id, self._plan = sweep_id, plan
        self._hardware, self._command = hardware, command
        self._hub_token, self._store_url = hub_token, store_url
        self._answers: dict[str, _Answer] = {}

    async def passes(self, cell: CellRecord, refused_as: Workload, tell: Tell) -> bool:
        """Judge a cell and write what it means: whether it goes on. A cell without a Run yet gets a refused one,
        under ``refused_as``, so that a decision can say why. Raises Cancelled, StoreError.
        """
        self._sweeps.set_cell(self._id, cell.position, "running", "fidelity")
        answer = await self._answer(cell.recipe, tell)
        self._join(cell, answer.fidelity)
        failure = refusal_of(self._plan, answer.fidelity, answer.error)
        if failure is None:
            self._sweeps.set_cell(self._id, cell.position, "pending", "fidelity")
            return True
        if not cell.runs:
            self._keep_refused(cell, refused_as, answer, failure)
        state: CellState = "failed" if answer.error else "refused"
        self._sweeps.set_cell(self._id, cell.position, state, "fidelity", failure)
        return False

    async def share(self, cell: CellRecord) -> None:
        """Give a cell's Runs what is known of it by now; nothing is measured."""
        if answer := await self._known(cell.recipe):
            self._join(cell, answer.fidelity)

    async def joined(self, run: Run) -> Run:
        """The Run with what is known of its configuration; nothing is measured."""
        answer = await self._known(run.recipe)
        return run if answer is None else run.model_copy(update={"fidelity": answer.fidelity})

    async def _known(self, recipe: Recipe) -> _Answer | None:
        asked = await self._asked(recipe)
        return _failed(asked, recipe) if isinstance(asked, McpError) else self._answers.get(_identity(asked))

    async def _answer(self, recipe: Recipe, tell: Tell) -> _Answer:
        plan = await self._asked(recipe)
        if isinstance(plan, McpError):
            return _failed(plan, recipe)
        key = _identity(plan)
        if key not in self._answers:
            self._answers[key] = await self._measured(plan, tell)
        return self._answers[key]

    async def _asked(self, recipe: Recipe) -> Plan | McpError:
        """What is compared with what; what the store knows of it is noted."""
        try:
            plan = await asyncio.to_thread(make_plan, recipe, self._hardware, hub_token=self._hub_token)
        except McpError as error:
            return error
        if (key := _identity(plan)) not in self._answers and (known := known_fidelity(plan, self._store)):
            self._answers[key] = _Answer(known.fidelity)
        return plan

    async def _measured(self, plan: Plan, tell: Tell) -> _Answer:
        parts: dict[str, float] = {}

        def on_event(event: Mapping[str, Any]) -> None:
            stage, fraction = event["stage"], event["fraction"]
            if stage in STAGES:
                parts[stage] = fraction or 0.0
            within = sum(parts.values()) / len(STAGES) if parts else None
            tell(fraction if stage == "score" else within, f"{stage} {event['message']}")

        request = {"recipe": plan.recipe.model_dump(mode="json")}
        secrets = {"hub_token": self._hub_token, "store_url": self._store_url}
        try:
            answer = await run_child("fidelity", request, secrets, on_event, self._command)
        except (Cancelled, StoreError):
            raise
        except McpError as error:
            return _failed(error, plan.recipe)
        return _Answer(Fidelity.model_validate(answer["fidelity"]))

    def _join(self, cell: CellRecord, fidelity: Fidelity) -> None:
        """To the Runs that were stored before it was known, or while it could not be measured."""
        for each in cell.runs:
            run = self._store.get(each.run_id)
            if run is not None and (run.fidelity is None or run.fidelity.status == "not-measurable"):
                judged = run.model_copy(update={"fidelity": fidelity})
                self._store.add(judged, self._store.records(run.id), self._store.telemetry(run.id))

    def _keep_refused(self, cell: CellRecord, workload: Workload, answer: _Answer, failure: Failure) -> None:
        recipe = conflicts.resolve(cell.recipe, self._hardware)
        error = answer.error or FidelityLost(failure.message, failure.hint)
        run = unmeasured(recipe, workload, self._hardware, error).model_copy(update={"fidelity": answer.fidelity})
        self._sweeps.link(self._id, cell.position, SweepRun(run.id, "measure"))
        self._store.add(run)


def refusal_of(
    plan: SweepPlan, fidelity: Fidelity, error: McpError | None = None, *, never: str = ""
) -> Failure | None:
    """Why the Goal's fidelity limits keep this from winning, each with its figure; None where they do not.
    ``never`` says why there can be no figure."""
    limits = plan.fidelity_limits
    if limits is None:
        return None
    found = judged_fidelity(fidelity_facts(fidelity) or {}, limits, never.rstrip("."))
    broken = [each for each in found if isinstance(each, Broken)]
    if not broken:
        return None
    message = f"{'; '.join(each.text for each in broken)}."
    if error is not None:
        return Failure(kind=error.kind, message=message, hint=error.hint)
    if any(each.is_measured for each in broken):
        return Failure(kind=FidelityLost.kind, message=message, hint=_LESS_LOSS)
    return Failure(kind=FidelityLost.kind, message=message, hint=_NO_LIMIT)


def _identity(plan: Plan) -> str:
    """The store's key; of a model whose content is not here yet, what can change its logits."""
    return plan.key or plan.recipe.numerics_key


def _failed(error: McpError, recipe: Recipe) -> _Answer:
    return _Answer(_not_measurable(error.message, recipe), error)


def _not_measurable(reason: str, recipe: Recipe) -> Fidelity:
    return Fidelity(status="not-measurable", reason=reason, numerics_key=recipe.numerics_key, engine=recipe.engine)
