"""A new sweep: every cell of its plan written before anything is measured, those that cannot run with the reason.

This file does not know how cells are measured (``sweep.py``) or which can run (``sweep_cells.py``).
"""

from __future__ import annotations

from mcp_core import conflicts
from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import CellRecord, SweepRun
from mcp_core.decision.sweeps import Sweeps
from mcp_core.errors import DoesNotFit, FidelityLost, InputError, McpError
from mcp_core.evaluation.benchmark import unmeasured
from mcp_core.evaluation.sweep_cells import CheckedCell, check_cells
from mcp_core.hardware import Hardware
from mcp_core.sweep_plan import Stage, SweepPlan

__all__ = ["begin"]

# Refusals that are Runs, too.
_TOLD: dict[str, type[McpError]] = {each.kind: each for each in (DoesNotFit, FidelityLost)}


def begin(store: Store, plan: SweepPlan, hardware: Hardware) -> str:
    """Write a new sweep with all its cells, those that cannot run with the reason; its id.

    One that does not fit, or whose fidelity can never be known, is a refused Run, too. Raises InputError for a plan
    of which nothing can run.
    """
    checked = check_cells(plan, hardware)
    if all(each.refused for each in checked):
        first = checked[0].refused
        assert first is not None
        raise InputError(
            f"None of the {len(checked)} configurations can run here. The first: {first.message}", first.hint
        )
    cells = [
        CellRecord(
            each.cell.position,
            each.cell.name,
            each.cell.recipe,
            "refused" if each.refused else "pending",
            failure=each.refused,
        )
        for each in checked
    ]
    device = conflicts.resolve(plan.base, hardware).device
    sweeps = Sweeps(store)
    sweep_id = sweeps.create(plan, cells, hardware, device)
    for each in checked:
        _keep_refused(store, sweeps, sweep_id, plan, each, hardware)
    return sweep_id


def _keep_refused(
    store: Store, sweeps: Sweeps, sweep_id: str, plan: SweepPlan, each: CheckedCell, hardware: Hardware
) -> None:
    """A decision has to say why a configuration was refused that this machine could start, so it is a Run."""
    error = _TOLD.get(each.refused.kind) if each.refused else None
    if each.refused is None or error is None:
        return
    stage: Stage = "probe" if plan.probe_s else "measure"
    run = unmeasured(
        conflicts.resolve(each.cell.recipe, hardware),
        plan.workload_of(stage, each.cell),
        hardware,
        error(each.refused.message, each.refused.hint),
    ).model_copy(update={"fidelity": each.fidelity})
    sweeps.link(sweep_id, each.cell.position, SweepRun(run.id, stage))
    store.add(run)
