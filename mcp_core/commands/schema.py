"""``mcp-core schema [recipe|workload|run|goal|decision|sweep]``: JSON Schema, every field described."""

from __future__ import annotations

import argparse

from pydantic import BaseModel

from mcp_core.commands.output import emit
from mcp_core.decision.decision import Decision
from mcp_core.goal import Goal
from mcp_core.recipe import Recipe
from mcp_core.results import Run
from mcp_core.sweep_plan import SweepPlan
from mcp_core.workload import Workload

__all__ = ["add_arguments", "run"]

VALUES: dict[str, type[BaseModel]] = {
    "recipe": Recipe,
    "workload": Workload,
    "run": Run,
    "goal": Goal,
    "decision": Decision,
    "sweep": SweepPlan,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which value."""
    parser.add_argument("value", nargs="?", choices=VALUES, help="only this one; default: all")
    parser.add_argument("--json", action="store_true", help="the answer is JSON anyway")


def run(options: argparse.Namespace) -> int:
    """Print."""
    if options.value:
        emit(VALUES[options.value].model_json_schema())
    else:
        emit({name: value.model_json_schema() for name, value in VALUES.items()})
    return 0
