"""``mcp-core verify DECISION``: winner and runner-up measured again; exits 1 when the choice no longer holds."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence
from pathlib import Path

from mcp_core import hardware
from mcp_core.commands.arguments import add_json, add_progress, whole_number
from mcp_core.commands.interrupts import run_until_stopped
from mcp_core.commands.output import ProgressReport, complain, emit, note, say
from mcp_core.conflicts import require_runnable
from mcp_core.decision.shipment import read_decision
from mcp_core.decision.store import Store
from mcp_core.errors import McpError
from mcp_core.evaluation.fresh_run import fresh_run
from mcp_core.evaluation.verification import Verification, verify
from mcp_core.hardware import Hardware
from mcp_core.recipe import Recipe
from mcp_core.results import RequestRecord, Run
from mcp_core.workload import Workload

__all__ = ["add_arguments", "run"]

_STARTS = 3
_SEEDS = 2**31


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DECISION, --starts, --seed, --progress, --json."""
    parser.add_argument("decision", metavar="DECISION", type=Path, help="a file that recommend --out wrote")
    parser.add_argument(
        "--starts",
        type=whole_number(1, 50),
        default=_STARTS,
        metavar="N",
        help=f"fresh starts of each, in turn; default: {_STARTS}",
    )
    parser.add_argument(
        "--seed", type=whole_number(0, _SEEDS), metavar="N", help="of the prompts; default: a new one"
    )
    add_progress(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Measure and print. 0 it holds, 1 it does not, with the reason on stderr. Raises InputError, StoreError."""
    decision, machine = read_decision(options.decision), hardware.detect()
    seed = secrets.randbelow(_SEEDS) if options.seed is None else options.seed
    for choice in (decision.winner, decision.runner_up):
        if choice is not None and choice.recipe.model.source != "endpoint":
            require_runnable(choice.recipe, machine)
    with Store() as store:
        one = _Measuring(store, machine, ProgressReport(as_json=options.progress == "json"))
        found = run_until_stopped(verify(decision, one, machine, seed=seed, starts=options.starts))
    if options.json:
        emit(found.model_dump(mode="json"))
    else:
        _show(found)
    if found.holds:
        return 0
    again = "Decide again: mcp-core recommend GOAL." if found.told else "Verify it again on a quiet machine."
    complain(McpError(found.why, again))
    return 1


class _Measuring:
    """Measures one configuration, and stores the Run."""

    def __init__(self, store: Store, machine: Hardware, progress: ProgressReport) -> None:
        self._store = store
        self._machine = machine
        self._progress = progress

    async def __call__(self, recipe: Recipe, workload: Workload) -> tuple[Run, Sequence[RequestRecord]]:
        measured, records, telemetry = await fresh_run(recipe, workload, self._machine, self._progress)
        self._store.add(measured, records, telemetry)
        return measured, records


def _show(found: Verification) -> None:
    if found.holds:
        say(found.why)
    for change in found.changes:
        if not change.breaks:
            say(f"Changed: {change.name}: {change.text}")
    note(f"seed {found.seed}; Runs {', '.join((*found.winner_runs, *found.runner_up_runs))}")
