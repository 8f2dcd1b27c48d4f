"""``mcp-core handbook [NAME]``: the article's advice and what it was worth here; with NAME, try one now."""

from __future__ import annotations

import argparse

from mcp_core import conflicts, hardware
from mcp_core.commands.arguments import add_json, add_progress, add_set, read_recipe
from mcp_core.commands.job_run import run_job
from mcp_core.commands.output import emit, say, size, table
from mcp_core.errors import RecipeError
from mcp_core.evaluation import experiment_results
from mcp_core.evaluation.experiment_values import Comparison, ExperimentResult
from mcp_core.evaluation.experiments import EXPERIMENTS, experiment, verdict, why_not
from mcp_core.hardware import Hardware
from mcp_core.presets import RECIPES
from mcp_core.recipe import Recipe

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME, --recipe, --progress, --set, --json."""
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help=f"try it now; without a name all are listed: {', '.join(EXPERIMENTS)}",
    )
    parser.add_argument(
        "--recipe",
        default="bundled",
        metavar="RECIPE",
        help=f"whose model, device and threads to try it with: JSON file, or one of: {', '.join(RECIPES)}",
    )
    add_progress(parser)
    add_set(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """List, or try one. Raises InputError for an unknown name, RecipeError where this machine cannot, Busy."""
    recipe, machine = read_recipe(options), hardware.detect()
    if options.name is None:
        _list(recipe, machine, as_json=options.json)
        return 0
    result = _try(options, recipe, machine)
    if options.json:
        emit(result.model_dump(mode="json") | {"verdict": verdict(result)})
    else:
        _show(result)
    return 0


def _try(options: argparse.Namespace, recipe: Recipe, machine: Hardware) -> ExperimentResult:
    what = experiment(options.name)
    if reason := why_not(what.name, recipe, machine):
        raise RecipeError(f"{what.title} cannot be tried here: {reason}", "mcp-core handbook lists what can.")
    resolved = conflicts.resolve(recipe, machine)
    answer = run_job(
        "experiment",
        what.job_title(recipe),
        {"name": what.name, "recipe": resolved.model_dump(mode="json")},
        device=resolved.device,
        progress_as_json=options.progress == "json",
    )
    return ExperimentResult.model_validate(answer)


def _list(recipe: Recipe, machine: Hardware, *, as_json: bool) -> None:
    found = experiment_results.latest(machine)
    if as_json:
        emit([_document(name, found.get(name), recipe, machine) for name in EXPERIMENTS])
        return
    rows = [("ADVICE", "ON THIS MACHINE")]
    rows += [(name, _standing(name, found.get(name), recipe, machine)) for name in EXPERIMENTS]
    table(rows)


def _document(name: str, result: ExperimentResult | None, recipe: Recipe, machine: Hardware) -> dict[str, object]:
    what = EXPERIMENTS[name]
    return {
        "name": name,
        "title": what.title,
        "advice": what.advice,
        "cannot": why_not(name, recipe, machine),
        "verdict": verdict(result) if result else None,
        "result": result.model_dump(mode="json") if result else None,
    }


def _standing(name: str, result: ExperimentResult | None, recipe: Recipe, machine: Hardware) -> str:
    if result is not None:
        return verdict(result)
    reason = why_not(name, recipe, machine)
    return f"cannot be tried: {reason}" if reason else f"not tried yet: mcp-core handbook {name}"


def _show(result: ExperimentResult) -> None:
    say(f"{EXPERIMENTS[result.name].title}: {result.model} in {result.dtype} on {result.device_name}\n")
    heading = ("WORK", "WAY", "TIME", "TIME RATIO (INTERVAL)", "PEAK MEMORY")
    table([heading, *(row for each in result.comparisons for row in _rows(each))])
    say(f"\n{verdict(result)}")
    for note in result.notes:
        say(note)


def _rows(each: Comparison) -> tuple[tuple[str, ...], tuple[str, ...]]:
    ratio = each.ratio
    words = f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}), {each.repeats} pairs"
    return (
        (each.what, each.baseline, f"{each.baseline_ms:.1f} ms", "1", size(each.baseline_peak_bytes)),
        ("", each.changed, f"{each.changed_ms:.1f} ms", words, size(each.changed_peak_bytes)),
    )
