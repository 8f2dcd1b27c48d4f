"""``mcp-core preset [NAME]``: the presets, or one as a document to start from."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mcp_core.commands.arguments import add_json
from mcp_core.commands.output import emit, say, table
from mcp_core.errors import ModelNotFound
from mcp_core.goal_presets import GOALS
from mcp_core.presets import RECIPES
from mcp_core.workload import WORKLOADS

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME and --json."""
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="print this one as JSON; without a name they are listed"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print. Raises ModelNotFound."""
    if options.name:
        emit(_document(options.name))
    elif options.json:
        emit({"recipes": _about(RECIPES), "workloads": _about(WORKLOADS), "goals": _about(GOALS)})
    else:
        rows = [("NAME", "KIND", "WHAT")]
        rows += [(name, "recipe", about) for name, about in _about(RECIPES).items()]
        rows += [(name, "workload", about) for name, about in _about(WORKLOADS).items()]
        rows += [(name, "goal", about) for name, about in _about(GOALS).items()]
        table(rows)
        say("\nPrint one: mcp-core preset NAME")
    return 0


def _document(name: str) -> Any:
    if name in RECIPES:
        return RECIPES[name]().model_dump(mode="json")
    if name in WORKLOADS:
        return WORKLOADS[name]().model_dump(mode="json")
    if name in GOALS:
        return GOALS[name]().model_dump(mode="json", exclude_defaults=True)
    raise ModelNotFound(f'There is no preset "{name}".', f"There are: {', '.join((*RECIPES, *WORKLOADS, *GOALS))}.")


def _about(presets: Mapping[str, Callable[[], object]]) -> dict[str, str]:
    return {name: inspect.getdoc(preset) or "" for name, preset in presets.items()}
