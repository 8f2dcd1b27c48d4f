"""A sweep's outcome as rows: each cell with the one Run that speaks for it, best first.

Of a confirmed cell only the confirmations count: the figures by which it was chosen are too good by the choosing.
This file does not know how rows are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mcp_core.decision.facts import fidelity_facts
from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import CellRecord, SweepRecord
from mcp_core.evaluation.sweep import ranked
from mcp_core.evaluation.sweep_ranking import Score
from mcp_core.evaluation.sweep_repeats import in_words
from mcp_core.results import Run
from mcp_core.sweep_plan import Stage

__all__ = ["SweepRow", "reasons", "sweep_rows"]

_STAGES: tuple[Stage, ...] = ("confirm", "measure", "probe")


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One cell. ``run`` is the median one (of two the slower) of its furthest stage, ``runs`` all of that stage.

    ``score`` is the median of what they are ranked by, None for what cannot win; ``level`` says how far it came.
    """

    cell: CellRecord
    stage: Stage | None
    run: Run | None
    runs: tuple[Run, ...]
    score: Score | None
    level: str

    @property
    def reason(self) -> str:
        """Why it was refused or failed, or why its fidelity is not known; empty otherwise."""
        if self.cell.failure:
            return self.cell.failure.message
        fidelity = self.run.fidelity if self.run else None
        lacks = fidelity is not None and fidelity.status == "not-measurable"
        return f"Fidelity not measured: {fidelity.reason}" if fidelity and lacks else ""

    @property
    def kl_over_floor(self) -> float | None:
        """Mean KL as a multiple of the noise floor; None where it was not judged or has none."""
        known = fidelity_facts(self.run.fidelity) if self.run else None
        figure = (known or {}).get("kl_over_floor")
        return None if figure is None else float(figure)


def sweep_rows(store: Store, record: SweepRecord) -> tuple[SweepRow, ...]:
    """Every cell: by the furthest stage that it came to and there the best first, then what cannot run."""
    runs = {run.id: run for run in map(store.get, record.run_ids) if run is not None}
    scores = {
        stage: {cell.position: each for cell, each in ranked(store, record, stage, runs)} for stage in _STAGES
    }
    rows = [_row(cell, runs, scores) for cell in record.cells]
    return tuple(sorted(rows, key=_place))


def reasons(cells: Iterable[CellRecord]) -> tuple[tuple[str, int], ...]:
    """Why cells are refused or failed, each reason with how many, the commonest first."""
    counts: dict[str, int] = {}
    for cell in cells:
        if cell.failure is not None:
            counts[cell.failure.message] = counts.get(cell.failure.message, 0) + 1
    return tuple(sorted(counts.items(), key=lambda item: -item[1]))


def _row(cell: CellRecord, runs: Mapping[str, Run], scores: Mapping[Stage, Mapping[int, Score]]) -> SweepRow:
    stage = next((each for each in _STAGES if cell.position in scores[each]), None)
    if stage is None:
        last = runs.get(cell.runs[-1].run_id) if cell.runs else None
        return SweepRow(cell, None, last, (last,) if last else (), None, cell.state)
    ids = [run.run_id for run in cell.runs if run.stage == stage and run.final]
    found = sorted((runs[run_id] for run_id in ids if run_id in runs), key=_speed)
    middle = found[(len(found) - 1) // 2]
    return SweepRow(
        cell, stage, middle, tuple(found), scores[stage][cell.position], _level(cell, stage, found, runs)
    )


def _level(cell: CellRecord, stage: Stage, found: list[Run], runs: Mapping[str, Run]) -> str:
    if stage == "confirm":
        starts = f"{len(found)} fresh start{'s' if len(found) > 1 else ''}"
        return ", ".join(filter(None, (starts, in_words(cell, runs, found))))
    ended = f", {cell.state}" if cell.state in ("refused", "failed") else ""
    return {"measure": "measured", "probe": "probed"}[stage] + ended


def _speed(run: Run) -> float:
    return (run.measurement.output_tok_s or 0.0) if run.measurement else 0.0


def _place(row: SweepRow) -> tuple[int, float, float, int]:
    stage = _STAGES.index(row.stage) if row.stage else len(_STAGES)
    first, second = row.score or (0.0, 0.0)
    return stage, -first, -second, row.cell.position
