"""Repeats of a sweep's confirmations: one that was disturbed from outside voids its evidence, so it is made again.

What was voided stays in the store and in the sweep's record, from which a killed sweep counts on. This file does
not know what disturbs a Run (``comparability.py``) or how one is measured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import CellRecord
from mcp_core.evaluation.comparability import disturbance
from mcp_core.results import Run

__all__ = ["FIRST", "MOST_REPEATS", "Attempt", "in_words", "is_repeated", "next_attempt"]

# Of each confirmation. What disturbs for longer will disturb the next, too.
MOST_REPEATS = 2


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a fresh start, after ``again`` that were disturbed; ``why`` says the last one's cause."""

    start: int = 0
    again: int = 0
    why: str = ""


FIRST = Attempt()


def next_attempt(store: Store, cell: CellRecord, start: int) -> Attempt | None:
    """What is to be done for this start of a cell; None where it is done or nothing can be. Raises StoreError."""
    if cell.run_of("confirm", start) is not None or cell.state == "failed":
        return None
    repeated = cell.repeated(start)
    last = store.get(repeated[-1]) if repeated else None
    return Attempt(start, len(repeated), "" if last is None else _cause(last))


def is_repeated(run: Run, attempt: Attempt) -> bool:
    """Whether a confirmation is made once more: it ended well, was disturbed, and there are tries left."""
    return run.status == "ok" and bool(_cause(run)) and attempt.again < MOST_REPEATS


def in_words(cell: CellRecord, runs: Mapping[str, Run], final: Collection[Run]) -> str:
    """As "2 repeated: noisy" and, of what counts, "1 still noisy"; empty where nothing was repeated."""
    void = [runs[run_id] for run_id in cell.repeated() if run_id in runs]
    if not void:
        return ""
    still = [cause for run in final if (cause := _cause(run))]
    told = f"{len(void)} repeated: {_causes(map(_cause, void))}"
    return f"{told}, {len(still)} still {_causes(still)}" if still else told


def _cause(run: Run) -> str:
    return disturbance(run.comparable.reasons)


def _causes(causes: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(causes))
