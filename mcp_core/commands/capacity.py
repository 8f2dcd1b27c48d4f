"""``mcp-core capacity RECIPE WORKLOAD --goal GOAL``: the largest load that was measured to meet every limit."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from mcp_core import devices, hardware
from mcp_core.commands.arguments import (
    add_json,
    add_progress,
    add_recipe,
    add_set,
    add_workload,
    hub_token,
    read_recipe,
    read_workload,
    require_place,
)
from mcp_core.commands.interrupts import run_until_stopped
from mcp_core.commands.output import ProgressReport, emit, note, say, table, write_file
from mcp_core.commands.recommend import read_goal
from mcp_core.conflicts import require_runnable
from mcp_core.decision.store import Store
from mcp_core.errors import Cancelled, WorkerDied
from mcp_core.evaluation.capacity import Capacity, requests_for, require_searchable
from mcp_core.evaluation.capacity_job import Served, search
from mcp_core.evaluation.endpoint_recipe import endpoint_recipe
from mcp_core.evaluation.metrics import MIN_REQUESTS_P95, MIN_REQUESTS_P99
from mcp_core.goal import Goal
from mcp_core.goal_presets import GOALS
from mcp_core.recipe import Recipe
from mcp_core.serving.supervisor import Supervisor
from mcp_core.workload import Workload

__all__ = ["add_arguments", "run"]

STOPPED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, WORKLOAD, --goal, --url, --most, --budget, --out, --progress, --force, --set, --json."""
    add_recipe(parser)
    add_workload(parser)
    add_set(parser, workload=True)
    add_json(parser)
    parser.add_argument(
        "--goal",
        required=True,
        metavar="GOAL",
        help=f"whose latency limits must hold: a JSON file, the JSON itself, or one of: {', '.join(GOALS)}",
    )
    parser.add_argument("--url", help="measure this running OpenAI-compatible server; nothing is loaded")
    parser.add_argument("--most", type=_positive, metavar="LOAD", help="try no more users, or requests/s")
    parser.add_argument(
        "--budget",
        type=_positive,
        metavar="SECONDS",
        help="for all points together, loading apart: none is begun that would end later, and one that is still "
        f"going then is cut and not judged. A point takes more than {MIN_REQUESTS_P95} requests where p95 has a "
        f"limit, {MIN_REQUESTS_P99:,} where p99 has",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the Capacity there, too")
    add_progress(parser)
    parser.add_argument("--force", action="store_true", help="load it even where it is estimated not to fit")


def run(options: argparse.Namespace) -> int:
    """Search, store each point as a Run, print. 0 found or partly, 1 when no load met every limit, 130 stopped.

    Raises InputError for what is malformed, what went wrong in loading, and WorkerDied where no server answered.
    """
    recipe, workload, machine = read_recipe(options), read_workload(options), hardware.detect()
    goal = read_goal(options.goal)
    require_searchable(workload, goal.slo)
    if (needed := requests_for(goal.slo, workload)) > workload.requests:
        note(f"a point takes {needed:,} requests, not {workload.requests:,}: enough for every limited percentile")
    if options.url:
        recipe = endpoint_recipe(recipe, options.url)
    else:
        require_runnable(recipe, machine)
    require_place(options.out)
    with Store() as store:  # opened first: one that cannot be used is known before minutes are spent
        found = run_until_stopped(_find(recipe, workload, goal, store, options))
    if options.json:
        emit(found.model_dump(mode="json"))
    else:
        _show(found)
    if options.out is not None:
        write_file(options.out, found.model_dump_json(indent=2) + "\n", "Its points are stored: mcp-core runs")
    if found.ended == "cancelled":
        return STOPPED
    if found.ended == "failed" and found.best is None:
        raise WorkerDied("; ".join(found.points[-1].broken), "Check that the server runs, and the URL.")
    return 0 if found.best is not None else 1


async def _find(
    recipe: Recipe, workload: Workload, goal: Goal, store: Store, options: argparse.Namespace
) -> Capacity:
    report = ProgressReport(as_json=options.progress == "json")
    limits = {"keep": store.add, "on_progress": report, "most": options.most, "budget_s": options.budget}
    machine = hardware.detect()
    if options.url:
        return await search(Served(options.url, None, None, recipe, machine), workload, goal, **limits)
    supervisor = Supervisor()
    try:
        worker = await supervisor.start(recipe, hub_token=hub_token(), force=options.force, on_progress=report)
        assert worker.url is not None
        served = Served(worker.url, worker.token, worker.control_url, worker.recipe, machine)
        label = f"mcp-core capacity {workload.name}"
        with devices.acquire(worker.recipe.device, "measure", label, besides=[worker.lease.holder.id]):
            return await search(served, workload, goal, **limits)
    except asyncio.CancelledError:
        raise Cancelled("Loading was stopped.", "Nothing was measured.") from None
    finally:
        await supervisor.close()


def _show(found: Capacity) -> None:
    unit = "USERS" if found.kind == "concurrency" else "REQUESTS/S"
    rows = [
        (
            f"{point.load:g}",
            "yes" if point.meets else "no",
            "-" if point.attainment is None else f"{point.attainment:.1%}",
            "-" if point.goodput_s is None else f"{point.goodput_s:.3g}/s",
            "; ".join(point.broken) or "-",
            point.run_id,
        )
        for point in sorted(found.points, key=lambda each: each.load)
    ]
    if rows:
        table([(unit, "MEETS", "ATTAINMENT", "GOODPUT", "BROKEN", "RUN"), *rows])
    points = "1 point" if len(found.points) == 1 else f"{len(found.points)} points"
    say(f"\n{found.in_words} {points} in {found.seconds:.0f} s.")
    if found.limits:
        say(f"Every limit: {', '.join(found.limits)}.")
    if found.ended_in_words:
        note(found.ended_in_words)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number') from error
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return number
