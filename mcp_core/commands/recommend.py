"""``mcp-core recommend GOAL``: one configuration for a Goal, and why each other one was refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mcp_core.commands.arguments import add_json, require_place
from mcp_core.commands.output import emit, note, say, table, write_file
from mcp_core.decision.decision import Choice, Decision
from mcp_core.decision.figures import figure, known_columns
from mcp_core.decision.store import Store
from mcp_core.decisions import Decisions
from mcp_core.errors import GoalError, McpError
from mcp_core.goal import Goal
from mcp_core.goal_presets import GOALS, goal_preset

__all__ = ["add_arguments", "run"]

_MOST_REFUSED = 30
_EXAMPLE = '{"users": 40, "slo": {"ttft_ms": {"p95": 500}}}'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """GOAL, --out, --json."""
    parser.add_argument(
        "goal",
        metavar="GOAL",
        help=f"JSON file, the JSON itself: '{_EXAMPLE}', or one of: {', '.join(GOALS)}",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the Decision there, as verify reads it")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Decide and print; exits 1 when nothing meets the Goal. Raises GoalError, StoreError."""
    goal = read_goal(options.goal)
    require_place(options.out)
    with Store() as store:
        decisions = Decisions(lambda: store)
        decision = decisions.with_times(decisions.recommend(goal))
    if options.json:
        emit(json.loads(decision.to_json()))
    else:
        _show(decision)
    if options.out is not None:
        write_file(options.out, decision.to_json(), "Give another --out.")
        note(f"the Decision is in {options.out}")
    if decision.winner is not None:
        return 0
    raise McpError(decision.answer, "; ".join(decision.notes) or "mcp-core runs lists what was measured.")


def read_goal(text: str) -> Goal:
    """The Goal of a preset, in a file, or written out. Raises GoalError."""
    if text in GOALS:
        return goal_preset(text)
    if text.lstrip().startswith("{"):
        return Goal.from_json(text)
    try:
        return Goal.from_json(Path(text).read_bytes())
    except OSError as error:
        raise GoalError(
            f"{text} cannot be read: {error.strerror}.",
            f"Give a JSON file, the JSON itself, or one of: {', '.join(GOALS)}.",
        ) from error


def _show(decision: Decision) -> None:
    if decision.winner is not None:
        say(f"{decision.answer}\n")
        rows = (_row(each, decision) for each in (decision.winner, *decision.runners_up))
        table(known_columns([_HEADING, *rows], "-"))
        say("")
    if decision.refused:
        shown = decision.refused[:_MOST_REFUSED]
        table([("REFUSED", "RUN", "WHY"), *((each.name, each.run or "-", each.reason) for each in shown)])
        if len(decision.refused) > len(shown):
            note(f"{len(decision.refused) - len(shown)} more; --json has all")
        say("")
    for missing in decision.missing:
        seconds = "" if missing.seconds is None else f", about {missing.seconds:,.0f} s"
        times = f"{missing.repeats} × " if missing.workload else ""
        say(f"To add: {times}{missing.title}{seconds}: {missing.why}\n  {missing.command}")
    if decision.winner is not None:
        for words in decision.notes:
            note(words)


_HEADING = (
    "MEETS",
    "RUN",
    "LOAD",
    "tok/s",
    "TTFT ms",
    "TPOT ms",
    "PEAK GB",
    "GOODPUT/s",
    "J/TOKEN",
    "COST/1M",
    "AGAINST WINNER",
)


def _row(each: Choice, decision: Decision) -> tuple[str, ...]:
    figures = each.figures
    against = "winner" if decision.winner is each else ""
    against = "equivalent" if each.run in decision.equivalent else against
    against = "undecided" if each.run in decision.undecided else against
    peak_gb = None if figures.peak_bytes is None else figures.peak_bytes / 1e9
    numbers = (
        each.load,
        figures.output_tok_s,
        figures.ttft_ms,
        figures.tpot_ms,
        peak_gb,
        figures.goodput_s,
        figures.energy_j_per_token,
        figures.cost_per_million_tokens,
    )
    return each.name, each.run, *map(figure, numbers), against
