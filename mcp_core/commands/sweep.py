"""``mcp-core sweep PLAN``: many configurations measured by racing, unattended; resumed after a crash.

A line of JSON a Run goes to stdout (to a terminal only with --json), everything for people to stderr; of --show the
table is the answer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mcp_core import hardware
from mcp_core.commands.arguments import add_progress, hub_token, require_place
from mcp_core.commands.interrupts import run_until_stopped
from mcp_core.commands.output import ProgressReport, note, say, size
from mcp_core.decision.merging import write_runs
from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import SweepRecord
from mcp_core.decision.sweeps import Sweeps
from mcp_core.errors import Cancelled, InputError, ModelNotFound
from mcp_core.evaluation.article_table import article_rows, is_full_size, stored_rows
from mcp_core.evaluation.fidelity_time import fidelity_seconds
from mcp_core.evaluation.new_sweep import begin
from mcp_core.evaluation.sweep import Host, race
from mcp_core.evaluation.sweep_budget import budget_of, runnable
from mcp_core.evaluation.sweep_ceilings import lacking_ceilings
from mcp_core.evaluation.sweep_cells import check_cells
from mcp_core.evaluation.sweep_ranking import unit
from mcp_core.evaluation.sweep_table import SweepRow, reasons, sweep_rows
from mcp_core.hardware import Hardware
from mcp_core.progress import ProgressTracker
from mcp_core.results import Run
from mcp_core.sweep_plan import SweepPlan
from mcp_core.sweep_presets import PLANS, sweep_preset

__all__ = ["add_arguments", "run"]

STOPPED = 130
# A line for people, to stdout or to stderr.
Tell = Callable[[str], None]
# Of the newest Runs, so many tell how long loading takes.
_HISTORY_RUNS = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PLAN, --resume, --dry-run, --show, --out, --progress, --json."""
    parser.add_argument("plan", metavar="PLAN", help=f"JSON file, or one of: {', '.join(PLANS)}")
    parser.add_argument("--resume", action="store_true", help="go on with the newest sweep of this plan")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it would measure and how long that takes; start nothing"
    )
    parser.add_argument(
        "--show",
        action="store_true",
        help="what came of the newest sweep of this plan, again; the article's table also from merged Runs",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write its Runs there: mcp-core runs merge reads it"
    )
    parser.add_argument(
        "--json", action="store_true", help="write each Run to stdout as a line of JSON, to a terminal too"
    )
    add_progress(parser)


def run(options: argparse.Namespace) -> int:
    """Race to the end. 0 when something was measured, 1 when nothing was, 130 stopped (it can be resumed).

    Raises InputError before anything is started, and StoreError.
    """
    machine = hardware.detect()
    plan = _read(options.plan, machine)
    require_place(options.out)
    if options.show:
        return _show(plan, options)
    with Store() as store:
        _announce(store, plan, machine)
        if options.dry_run:
            return 0
        sweep_id = _resumed(store, plan, machine) if options.resume else _begun(store, plan, machine)
        code = 0 if sweep_id is None else _race(store, sweep_id, machine, options)
        record = Sweeps(store).get(sweep_id) if sweep_id else Sweeps(store).newest(plan)
        assert record is not None
        return code or _tell(store, record, options)


def _read(name: str, machine: Hardware) -> SweepPlan:
    path = Path(name)
    if name in PLANS or not (path.suffix or path.exists()):
        return sweep_preset(name, machine)
    try:
        return SweepPlan.from_json(path.read_bytes())
    except OSError as error:
        raise ModelNotFound(
            f"{name} cannot be read: {error.strerror}.", "Give a JSON file or a preset's name."
        ) from error


def _announce(store: Store, plan: SweepPlan, machine: Hardware) -> None:
    """Device time and refusals, before anything is started."""
    checked = check_cells(plan, machine)
    judging = fidelity_seconds(plan, checked, machine, store)
    lacking = lacking_ceilings((each.cell.recipe for each in runnable(checked)), machine)
    budget = budget_of(plan, checked, store.list(_HISTORY_RUNS), judging, len(lacking))
    note(f"sweep {plan.name}: {budget.in_words()}")
    counts: dict[str, list[str]] = {}
    for each in checked:
        if each.refused is not None:
            counts.setdefault(each.refused.message, []).append(each.cell.name)
    for message, names in counts.items():
        note(f"refused, {len(names)}: {message} ({names[0]}{', ...' if len(names) > 1 else ''})")


def _begun(store: Store, plan: SweepPlan, machine: Hardware) -> str:
    earlier = Sweeps(store).newest(plan)
    if earlier is not None and earlier.is_resumable:
        note(f"an earlier sweep of this plan stopped midway ({earlier.id}); --resume would go on with it")
    return begin(store, plan, machine)


def _resumed(store: Store, plan: SweepPlan, machine: Hardware) -> str | None:
    """The sweep that goes on; None when it has come to its end already."""
    earlier = Sweeps(store).newest(plan)
    if earlier is None:
        raise InputError("There is no sweep of this plan to resume.", "Start it without --resume.")
    if earlier.state == "done":
        note(f"sweep {earlier.id} has come to its end already")
        return None
    Sweeps(store).claim(earlier.id, machine)
    note(f"sweep {earlier.id} goes on: {len(earlier.run_ids)} Runs are there")
    return earlier.id


def _race(store: Store, sweep_id: str, machine: Hardware, options: argparse.Namespace) -> int:
    as_json = options.json or not sys.stdout.isatty()
    host = Host(
        machine,
        tell=_Teller(as_json=options.progress == "json"),
        on_run=lambda run: _say_run(run, as_json=as_json),
        hub_token=hub_token(),
    )
    try:
        run_until_stopped(race(store, sweep_id, host))
    except Cancelled as error:
        note(f"{error.message} {error.hint}")
        _write_out(store, sweep_id, options)
        return STOPPED
    _write_out(store, sweep_id, options)
    return 0


def _write_out(store: Store, sweep_id: str, options: argparse.Namespace) -> None:
    record = Sweeps(store).get(sweep_id)
    if options.out is not None and record is not None:
        note(f"{write_runs(store, record.run_ids, options.out)} Runs written to {options.out}")


def _say_run(run: Run, *, as_json: bool) -> None:
    if as_json:
        say(run.model_dump_json())


class _Teller:
    """What a sweep tells, as progress with elapsed and remaining time."""

    def __init__(self, *, as_json: bool) -> None:
        self._report = ProgressReport(as_json=as_json)
        self._tracker = ProgressTracker(time.time())

    def __call__(self, stage: str, fraction: float | None, message: str) -> None:
        self._tracker.update(stage, fraction, message, time.time())
        self._report(self._tracker.view(time.time()))


def _tell(store: Store, record: SweepRecord, options: argparse.Namespace) -> int:
    rows = sweep_rows(store, record)
    if options.plan == "article":
        _tell_article(rows, note)
    else:
        _tell_rows(rows, record, note)
    return 0 if any(row.score is not None for row in rows) else 1


def _show(plan: SweepPlan, options: argparse.Namespace) -> int:
    """From the store alone. Raises InputError where there is nothing to show, or beside an option that measures."""
    if options.resume or options.dry_run:
        raise InputError("--show measures nothing.", "Leave out --resume and --dry-run.")
    tell = note if options.json else say
    with Store() as store:
        record = None if options.plan == "article" else Sweeps(store).newest(plan)
        rows = stored_rows(store) if options.plan == "article" else sweep_rows(store, record) if record else ()
        if not rows:
            raise InputError("Nothing of this plan is stored.", _HOW_TO_SHOW[options.plan == "article"])
        runs = [run for row in rows for run in row.runs]
        if record is None:
            _tell_origin(runs, tell)
            _tell_article(rows, tell)
        else:
            _tell_rows(rows, record, tell)
        for run in runs:
            _say_run(run, as_json=options.json)
        if options.out is not None:
            note(f"{write_runs(store, [run.id for run in runs], options.out)} Runs written to {options.out}")
    return 0 if any(run.status == "ok" for run in runs) else 1


# By whether it is the article's.
_HOW_TO_SHOW = {
    True: "Run it without --show, or merge the file that its --out wrote: mcp-core runs merge FILE.",
    False: "Run it without --show. Merging brings Runs, not the sweep: mcp-core recommend decides by them.",
}


def _tell_origin(runs: Sequence[Run], tell: Tell) -> None:
    """Where and when stored Runs were measured, since they need not be of one sweep."""
    devices = [run.hardware.device(run.recipe.device) for run in runs]
    names = dict.fromkeys(device.name for device in devices if device)
    cards = {device.uuid for device in devices if device and device.uuid}
    several = f", {len(cards)} cards" if len(cards) > 1 else ""
    days = sorted(f"{run.created:%Y-%m-%d %H:%M}" for run in runs)
    if days:
        many = f"{len(runs)} stored Run{'s' if len(runs) > 1 else ''}"
        tell(f"From {many} of {' and '.join(names)}{several}, {days[0]} to {days[-1]} UTC.")


def _tell_rows(rows: Sequence[SweepRow], record: SweepRecord, tell: Tell) -> None:
    heading = ("CONFIGURATION", "HOW FAR", "OUTPUT tok/s", "TTFT p50 ms", "TPOT p50 ms", "PEAK", "KL x FLOOR")
    lines = [(heading, unit(record.plan.goal)), *((_cells(row), _ranked_by(row)) for row in rows if row.stage)]
    told = lines[0][1] != "output tok/s"  # else it stands there already
    _tell_table([(*cells, last) if told else cells for cells, last in lines], tell)
    for message, count in reasons(cell for cell in record.cells):
        tell(f"{count} refused or failed: {message}")
    for message in sorted({row.reason for row in rows if row.reason and not row.cell.failure}):
        tell(message)
    if rows and rows[0].stage == "confirm":
        tell(
            "Of several fresh starts the figures are the median one's, of two the slower one's; "
            "the order is by the median of them, of two by their mean."
        )
        tell(f"best: {rows[0].cell.name}, {rows[0].level}; mcp-core recommend decides from all Runs")


def _cells(row: SweepRow) -> tuple[str, ...]:
    run = row.run
    measured, memory = (run.measurement, run.memory) if run else (None, None)
    return (
        row.cell.name,
        row.level,
        _figure(measured.output_tok_s if measured else None),
        _figure(measured.ttft_ms.p50 if measured else None),
        _figure(measured.tpot_ms.p50 if measured else None),
        size(memory.peak_bytes if memory else None),
        _figure(row.kl_over_floor),
    )


def _ranked_by(row: SweepRow) -> str:
    return _figure(abs(row.score[0]) if row.score else None)


def _tell_article(rows: Sequence[SweepRow], tell: Tell) -> None:
    table = article_rows(rows)
    if not is_full_size(table):
        tell("Without a GPU shapes of 0.1 and 0.2 B parameters stand for 7B and 13B. Compare the ratios.")
    tell(
        "The article names neither hardware nor workload. Measured: 8 users, 128 tokens in, 32 out, random weights;"
    )
    tell("memory is the weights' (peak beside it), latency the median request, throughput completed requests.")
    heading = (
        "SIZE",
        "BITS",
        "ARTICLE GB",
        "ms",
        "req/s",
        "MEASURED",
        "SCHEME",
        "GB",
        "peak GB",
        "ms",
        "req/s",
        "",
    )
    lines = [
        (
            each.size,
            each.bits,
            *map(_figure, (each.article.memory_gb, each.article.latency_ms, each.article.requests_s)),
            each.model,
            each.scheme,
            *map(
                _figure, (each.measured.memory_gb, each.peak_gb, each.measured.latency_ms, each.measured.requests_s)
            ),
            each.reason or each.note,
        )
        for each in table
    ]
    _tell_table([heading, *lines], tell)


def _tell_table(rows: Sequence[Sequence[str]], tell: Tell) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        tell("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
