"""``mcp-core footprint RECIPE``: what it takes before loading, against what this machine has free now."""

from __future__ import annotations

import argparse
import dataclasses

from mcp_core import conflicts, hardware
from mcp_core.commands.arguments import add_json, add_recipe, add_set, hub_token, read_recipe, whole_number
from mcp_core.commands.output import complain, emit, say, size, table
from mcp_core.commands.run_table import scheme_words
from mcp_core.decision.store import Store
from mcp_core.errors import RecipeError, StoreError
from mcp_core.models import catalog
from mcp_core.models.correction import HISTORY_RUNS, NONE, Correction, correction_of, errors_of
from mcp_core.models.draft_memory import draft_of
from mcp_core.models.footprint import Footprint, Predictor
from mcp_core.models.planner import MOST_USERS, group_modules, longest_context, users_at
from mcp_core.models.served_load import ServedLoad
from mcp_core.recipe import Recipe

__all__ = ["add_arguments", "run"]

_GROUPS_SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, --context, --concurrency, --uncorrected, --set, --json."""
    add_recipe(parser)
    parser.add_argument(
        "--context",
        type=whole_number(1),
        metavar="N",
        help="prompt + reply, tokens; default: the Recipe's longest",
    )
    parser.add_argument(
        "--concurrency", type=whole_number(1, MOST_USERS), default=1, metavar="N", help="users at once; default: 1"
    )
    parser.add_argument(
        "--uncorrected", action="store_true", help="leave out the correction learnt from Runs of this machine"
    )
    add_set(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Estimate and print; that it does not fit or cannot run here is an answer. Raises what resolving raises."""
    machine = hardware.detect()
    recipe = conflicts.resolve(read_recipe(options), machine)
    resolved = catalog.resolve(recipe.model, hub_token=hub_token())
    correction = NONE if options.uncorrected else _correction(recipe, machine.host)
    draft = draft_of(recipe, lambda ref: catalog.resolve(ref, hub_token=hub_token()))
    predictor = Predictor(recipe, resolved, machine, correction, draft)
    load = ServedLoad(_context(options.context, predictor), options.concurrency)
    estimate = predictor.at(load)
    answers = {
        "longest_context_tokens": longest_context(predictor, load.concurrency),
        "users": users_at(predictor, load.context_tokens),
    }
    found = recipe.conflicts(machine)
    if options.json:
        model = {"model": resolved.title, "parameters": resolved.architecture.parameters}
        cannot = [dataclasses.asdict(conflict) for conflict in found]
        lists = {
            "parts": dict(estimate.parts),
            "modules": [dataclasses.asdict(module) for module in predictor.modules],
            "conflicts": cannot,
        }
        emit(model | dataclasses.asdict(estimate) | answers | lists)
        return 0
    say(f"{resolved.title}, {recipe.dtype}, {scheme_words(recipe)}, on {estimate.device}\n")
    if comes_as := resolved.comes_as(recipe, predictor.device, machine):
        say(f"{comes_as}\n")
    _show(estimate)
    _show_answers(load, **answers)
    _show_modules(predictor)
    for conflict in found:
        say(f"Cannot run here: {conflict.field}: {conflict.reason} {conflict.fix}")
    return 0


def _correction(recipe: Recipe, host: str) -> Correction:
    """None where the store cannot be read: what it would have corrected is not worth refusing an estimate."""
    try:
        with Store() as store:
            return correction_of(errors_of(store.list(HISTORY_RUNS), recipe, host))
    except StoreError as error:
        complain(error)
        return NONE


def _context(asked: int | None, predictor: Predictor) -> int:
    most = predictor.architecture.context
    if asked is not None and asked > most:
        raise RecipeError(f"--context: {asked:,} tokens asked, the model's context is {most:,}.", "Ask for less.")
    return asked or predictor.max_context


def _show(estimate: Footprint) -> None:
    held = f"{estimate.concurrency} x " if estimate.concurrency > 1 else ""
    rows = [("SERVING", "")]
    rows += [(name, size(count)) for name, count in estimate.parts]
    rows += [
        ("Weights in all", size(estimate.weights_bytes)),
        (f"Peak at {held}{estimate.context_tokens:,} tokens", size(estimate.peak_bytes)),
        *([("The program itself, beside it", size(estimate.imports_bytes))] if estimate.imports_bytes else []),
        ("Peak while loading", size(estimate.load_peak_bytes)),
        ("Keys and values of 1,000 tokens", size(1000 * estimate.kv_bytes_per_token)),
        ("Still to download", size(estimate.download_bytes)),
        ("Disk for preparing", size(estimate.prepare_bytes)),
    ]
    table(rows)
    say("")
    corrected = estimate.correction
    if corrected.runs:
        sign = "-" if corrected.bytes < 0 else "+"
        say(f"Runtime corrected by {sign}{size(abs(corrected.bytes))} from {corrected.runs} Runs on this machine.")
    say(estimate.reason)


def _show_answers(load: ServedLoad, longest_context_tokens: int, users: int) -> None:
    each = f" of each of {load.concurrency}" if load.concurrency > 1 else ""
    say(f"Longest context{each} that fits: {longest_context_tokens:,} tokens.")
    most = " or more" if users == MOST_USERS else ""
    say(f"Users at {load.context_tokens:,} tokens that fit: {users:,}{most}.\n")


def _show_modules(predictor: Predictor) -> None:
    groups = group_modules(predictor.modules)
    rows = [("WEIGHTS BY MODULE", "COUNT", "SIZE", "PACKED", "WHY DENSE")]
    rows += [
        (each.name, str(each.count), size(each.bytes), each.packed, each.dense_because)
        for each in groups[:_GROUPS_SHOWN]
    ]
    rest = groups[_GROUPS_SHOWN:]
    if rest:
        count, total = sum(each.count for each in rest), sum(each.bytes for each in rest)
        rows.append((f"{len(rest)} others", str(count), size(total), "", ""))
    table(rows if any(each.dense_because for each in groups) else [row[:-1] for row in rows])
    if left := [each for each in rest if each.dense_because]:
        say("Dense too: " + "; ".join(f"{each.name} ({each.dense_because})" for each in left))
