"""``mcp-core footprint RECIPE``: what it takes before loading, against what this machine has free now."""

from __future__ import annotations

import argparse
import dataclasses

from mcp_core import conflicts, hardware
from mcp_core.commands.arguments import add_json, add_recipe, add_set, hub_token, read_recipe
from mcp_core.commands.output import emit, say, size, table
from mcp_core.models import catalog, footprint
from mcp_core.models.footprint import Footprint

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, --set, --json."""
    add_recipe(parser)
    add_set(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Estimate and print; that it does not fit or cannot run here is an answer. Raises what resolving raises."""
    machine = hardware.detect()
    recipe = conflicts.resolve(read_recipe(options), machine)
    resolved = catalog.resolve(recipe.model, hub_token=hub_token())
    estimate = footprint.estimate(recipe, resolved, machine)
    found = recipe.conflicts(machine)
    if options.json:
        model = {"model": resolved.title, "parameters": resolved.architecture.parameters}
        cannot = [dataclasses.asdict(conflict) for conflict in found]
        emit(model | dataclasses.asdict(estimate) | {"parts": dict(estimate.parts), "conflicts": cannot})
    else:
        say(f"{resolved.title}, {recipe.dtype}, {recipe.quantization.scheme}, on {estimate.device}\n")
        _show(estimate)
        for conflict in found:
            say(f"Cannot run here: {conflict.field}: {conflict.reason} {conflict.fix}")
    return 0


def _show(estimate: Footprint) -> None:
    rows = [("SERVING", "")]
    rows += [(name, size(count)) for name, count in estimate.parts]
    rows += [
        ("Weights in all", size(estimate.weights_bytes)),
        (f"Peak at {estimate.context_tokens:,} tokens", size(estimate.peak_bytes)),
        ("Peak while loading", size(estimate.load_peak_bytes)),
        ("Keys and values of 1,000 tokens", size(1000 * estimate.kv_bytes_per_token)),
        ("Still to download", size(estimate.download_bytes)),
        ("Disk for preparing", size(estimate.prepare_bytes)),
    ]
    table(rows)
    say(f"\n{estimate.reason}")
