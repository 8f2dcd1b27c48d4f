"""SweepDesk: sweeps as pages start and see them: looked at before, queued as jobs, resumed, read from the store.

Pages reach it as ``workbench.sweeps``; every method may be called from any thread. This file does not know how a
sweep is run (``evaluation/sweep.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcp_core import conflicts, hardware
from mcp_core.errors import InputError
from mcp_core.recipe import Recipe
from mcp_core.sweep_plan import SweepPlan

# numpy and SQLAlchemy take half a second to import: not before a page asks.
if TYPE_CHECKING:
    from mcp_core.decision.store import Store
    from mcp_core.decision.sweep_record import SweepRecord
    from mcp_core.evaluation.sweep_budget import Budget
    from mcp_core.evaluation.sweep_cells import CheckedCell
    from mcp_core.evaluation.sweep_table import SweepRow
    from mcp_core.models.architecture import ResolvedModel
    from mcp_core.recipe import ModelRef
    from mcp_core.studies import Submit

__all__ = ["SweepDesk", "SweepPreview"]

# Of the newest Runs, so many tell how long loading takes.
_HISTORY_RUNS = 500


@dataclass(frozen=True, slots=True)
class SweepPreview:
    """What a plan comes to on this machine, before it starts."""

    cells: tuple[CheckedCell, ...]
    budget: Budget


class SweepDesk:
    """``resolve`` looks a model up; every method that reads the store raises StoreError."""

    def __init__(
        self, submit: Submit, store: Callable[[], Store], resolve: Callable[[ModelRef], ResolvedModel]
    ) -> None:
        self._submit = submit
        self._store = store
        self._resolve = resolve

    def preview(self, plan: SweepPlan) -> SweepPreview:
        """Its cells with reasons, and device time. Raises RecipeError, WorkloadError for a plan that makes none."""
        from mcp_core.evaluation.fidelity_time import fidelity_seconds
        from mcp_core.evaluation.sweep_budget import budget_of, runnable
        from mcp_core.evaluation.sweep_ceilings import lacking_ceilings
        from mcp_core.evaluation.sweep_cells import check_cells

        machine, store = hardware.detect(), self._store()
        cells = check_cells(plan, machine, self._resolve)
        judging = fidelity_seconds(plan, cells, machine, store)
        lacking = lacking_ceilings((each.cell.recipe for each in runnable(cells)), machine)
        return SweepPreview(cells, budget_of(plan, cells, store.list(_HISTORY_RUNS), judging, len(lacking)))

    def start(self, plan: SweepPlan, hub_token: str | None = None) -> str:
        """Queue it and return the job's id; its answer is {sweep_id}. Raises Busy."""
        return self._queue(plan, {"plan": plan.model_dump(mode="json")}, hub_token)

    def resume(self, sweep_id: str, hub_token: str | None = None) -> str:
        """The same for one that stopped midway. Raises InputError for one that there is not, Busy."""
        record = self.get(sweep_id)
        if record is None:
            raise InputError(f'There is no sweep "{sweep_id}".', "Start it anew.")
        return self._queue(record.plan, {"sweep_id": sweep_id}, hub_token)

    def list(self, limit: int = 10) -> tuple[SweepRecord, ...]:
        """Sweeps, newest first."""
        from mcp_core.decision.sweeps import Sweeps

        return Sweeps(self._store()).list(limit)

    def get(self, sweep_id: str) -> SweepRecord | None:
        """One sweep; None when there is none."""
        from mcp_core.decision.sweeps import Sweeps

        return Sweeps(self._store()).get(sweep_id)

    def rows(self, record: SweepRecord) -> tuple[SweepRow, ...]:
        """What came of it, best first."""
        from mcp_core.evaluation.sweep_table import sweep_rows

        return sweep_rows(self._store(), record)

    def _queue(self, plan: SweepPlan, request: dict[str, Any], hub_token: str | None) -> str:
        base = conflicts.resolve(plan.base, hardware.detect())
        device = Recipe(device=base.device, threads=base.threads)  # the base itself need not be one of the cells
        return self._submit("sweep", f"sweep {plan.name}", request, device, hub_token)
