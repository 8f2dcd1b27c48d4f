"""SweepRecord: one sweep as the store has it: its plan, its cells and the Runs of each. Frozen values.

This file does not know how they are stored (``sweeps.py``) or measured (``evaluation/sweep.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from mcp_core.recipe import Recipe
from mcp_core.results import Failure
from mcp_core.sweep_plan import Stage, SweepPlan

__all__ = ["CellRecord", "CellStage", "CellState", "SweepRecord", "SweepRun", "SweepState"]

# What a cell may have entered: judging fidelity makes no Run.
CellStage = Stage | Literal["fidelity"]
# A cell that was raced out is done: its probe is what there is to know of it.
CellState = Literal["pending", "running", "done", "refused", "failed"]
# interrupted: its process ended without saying so.
SweepState = Literal["running", "done", "cancelled", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One Run of a cell. ``start`` counts fresh starts of a stage from 0. Not ``final`` is what answers nothing: of
    a capacity search all Runs but one, of a confirmation those that were repeated."""

    run_id: str
    stage: Stage
    start: int = 0
    final: bool = True


@dataclass(frozen=True, slots=True)
class CellRecord:
    """One configuration. ``stage`` is the latest that it entered, ``failure`` why it was refused or failed."""

    position: int
    name: str
    recipe: Recipe
    state: CellState = "pending"
    stage: CellStage | None = None
    failure: Failure | None = None
    runs: tuple[SweepRun, ...] = ()

    def run_of(self, stage: Stage, start: int = 0) -> str | None:
        """Id of the Run that answers this step; None where it is still to be made."""
        found = (run for run in self.runs if run.stage == stage and run.start == start and run.final)
        return next((run.run_id for run in found), None)

    def repeated(self, start: int | None = None) -> tuple[str, ...]:
        """Ids of confirmations that were made again, by the second of their making: of one start, or of all."""
        void = (run for run in self.runs if run.stage == "confirm" and not run.final)
        return tuple(run.run_id for run in void if start is None or run.start == start)


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """One sweep. ``message`` says why it ended early."""

    id: str
    created: datetime
    plan: SweepPlan
    state: SweepState
    host: str
    device: str
    cells: tuple[CellRecord, ...]
    message: str = ""

    @property
    def is_resumable(self) -> bool:
        """Whether there is something left that nobody works on."""
        return self.state in ("cancelled", "failed", "interrupted")

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Every Run, in the order of the cells."""
        return tuple(run.run_id for cell in self.cells for run in cell.runs)

    def count(self, *states: CellState) -> int:
        """Cells in one of these states."""
        return sum(cell.state in states for cell in self.cells)
