"""Which cells of a sweep can run on a machine and win: conflicts, footprint, queue and what can never be judged.

Each refusal has its reason, and nothing is loaded. This file does not know how long a cell takes
(``sweep_budget.py``) or how it is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mcp_core import conflicts
from mcp_core.errors import DoesNotFit, McpError, RecipeError, WorkloadError
from mcp_core.evaluation.fidelity_plan import plan_of
from mcp_core.evaluation.sweep_fidelity import refusal_of
from mcp_core.hardware import Hardware
from mcp_core.models import catalog
from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.draft_memory import draft_of
from mcp_core.models.footprint import Footprint, Predictor
from mcp_core.models.served_load import ServedLoad
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.results import Failure, Fidelity
from mcp_core.sweep_plan import Cell, SweepPlan
from mcp_core.workload import Workload

__all__ = ["CheckedCell", "Resolve", "check_cells"]

Resolve = Callable[[ModelRef], ResolvedModel]


@dataclass(frozen=True, slots=True)
class CheckedCell:
    """A cell with what is known before loading; ``refused`` None where it can run.

    ``footprint`` is for the sweep's own load; it and ``resolved`` are None where they were not come to.
    ``fidelity`` says why a limit on it refuses the cell: none can ever be measured.
    """

    cell: Cell
    refused: Failure | None = None
    footprint: Footprint | None = None
    resolved: ResolvedModel | None = None
    fidelity: Fidelity | None = None


def check_cells(plan: SweepPlan, hardware: Hardware, resolve: Resolve = catalog.resolve) -> tuple[CheckedCell, ...]:
    """Every cell of the plan, in its order. Each model is looked up once. Raises RecipeError, WorkloadError for a
    plan that makes no Recipe or no load."""
    load = plan.load()
    known: dict[ModelRef, ResolvedModel] = {}

    def look_up(ref: ModelRef) -> ResolvedModel:
        if ref not in known:
            known[ref] = resolve(ref)
        return known[ref]

    checked = (_check(cell, load, hardware, look_up) for cell in plan.cells())
    return tuple(_judgeable(each, plan, hardware) for each in checked)


def _check(cell: Cell, load: Workload, hardware: Hardware, resolve: Resolve) -> CheckedCell:
    try:
        conflicts.require_runnable(cell.recipe, hardware)
        _require_room_in_queue(cell.recipe, load)
        resolved = resolve(cell.recipe.model)
        footprint = _footprint(cell.recipe, load, hardware, resolve)
    except McpError as error:  # also a model that cannot be looked up now
        return CheckedCell(cell, Failure.of(error))
    if footprint.fits:
        return CheckedCell(cell, None, footprint, resolved)
    misfit = DoesNotFit(footprint.reason, "Choose a smaller dtype, scheme, context or number of users.")
    return CheckedCell(cell, Failure.of(misfit), footprint, resolved)


def _judgeable(each: CheckedCell, plan: SweepPlan, hardware: Hardware) -> CheckedCell:
    """Refused where a fidelity limit asks for what can never be measured: it need not be probed to know."""
    if each.refused is not None or each.resolved is None or plan.fidelity_limits is None:
        return each
    try:
        told = plan_of(each.cell.recipe, hardware, each.resolved).without_measuring()
    except McpError:  # the fidelity stage will say why
        return each
    if told is None or told.status != "not-measurable":
        return each
    return replace(each, refused=refusal_of(plan, told, never=told.reason), fidelity=told)


def _require_room_in_queue(recipe: Recipe, load: Workload) -> None:
    """A server that holds fewer requests than there are clients turns the others away."""
    users, held = None if load.is_open else load.concurrency, recipe.batching.max_requests
    if users is not None and users > held:
        raise RecipeError(
            f"batching.max_requests: {held} requests are held, and {users} users ask at once.",
            f"Set it to at least {users}, or measure fewer users.",
        )


def _footprint(recipe: Recipe, load: Workload, hardware: Hardware, resolve: Resolve) -> Footprint:
    recipe = conflicts.resolve(recipe, hardware)
    predictor = Predictor(recipe, resolve(recipe.model), hardware, draft=draft_of(recipe, resolve))
    if load.longest_request > predictor.max_context:
        raise WorkloadError(
            f"The longest request has {load.longest_request:,} tokens; the context {predictor.max_context:,}.",
            "Shorten the workload, or choose a longer max_context.",
        )
    return predictor.at(ServedLoad.of_workload(load, recipe, predictor.max_context))
