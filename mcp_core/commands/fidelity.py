"""``mcp-core fidelity RECIPE``: how far its predictions are from those of the unquantized model.

This file does not know how that is measured (``evaluation/fidelity_job.py``, in a process of its own).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mcp_core import conflicts, hardware, texts
from mcp_core.commands.arguments import (
    add_json,
    add_progress,
    add_recipe,
    add_set,
    hub_token,
    read_recipe,
    require_place,
)
from mcp_core.commands.endpoint_fidelity import add_urls, measure_endpoint
from mcp_core.commands.fidelity_table import show_fidelity
from mcp_core.commands.job_run import run_job
from mcp_core.commands.output import emit, note, write_file
from mcp_core.decision.store import Store
from mcp_core.errors import InputError
from mcp_core.evaluation.fidelity_plan import make_plan, original_named
from mcp_core.evaluation.fidelity_time import judging_seconds
from mcp_core.evaluation.known_fidelity import known_fidelity
from mcp_core.hardware import Hardware
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.results import Fidelity

__all__ = ["add_arguments", "add_original", "measure_fidelity", "original_of", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, --text, --reference-dtype, --original, --url, --reference-url, --fresh, --out, and the usual."""
    add_recipe(parser)
    add_set(parser)
    add_json(parser)
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="score this .txt, .jsonl or .csv; default: the built-in set"
    )
    parser.add_argument(
        "--reference-dtype", choices=("fp32",), help="to check the instrument; default: the checkpoint's own"
    )
    add_original(parser)
    add_urls(parser)
    parser.add_argument("--fresh", action="store_true", help="measure again what is known already")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the answer there, too")
    add_progress(parser)


def add_original(parser: argparse.ArgumentParser) -> None:
    """--original."""
    parser.add_argument(
        "--original",
        metavar="MODEL",
        help="the model that the Recipe's checkpoint was made of, to compare it with: bundled, a folder, a .gguf "
        "file or a Hub id; for checkpoints that come quantized",
    )


def original_of(options: argparse.Namespace) -> ModelRef | None:
    """What --original names."""
    return None if options.original is None else original_named(options.original)


def run(options: argparse.Namespace) -> int:
    """Measure, store, print. Raises InputError before anything is started, else what the job raises."""
    recipe = read_recipe(options)
    require_place(options.out)
    text_sha256 = _add_text(options.text) if options.text else None
    fidelity = _measure(options, recipe, text_sha256)
    _write(options.out, fidelity)
    if options.json:
        emit(fidelity.model_dump(mode="json"))
    else:
        show_fidelity(fidelity)
    return 0


def _measure(options: argparse.Namespace, recipe: Recipe, text_sha256: str | None) -> Fidelity:
    as_json = options.progress == "json"
    if options.url is not None:
        if options.original is not None:
            raise InputError("--original goes without --url.", "With --url name a server of it: --reference-url.")
        return measure_endpoint(recipe, options.url, options.reference_url, text_sha256, progress_as_json=as_json)
    if options.reference_url is not None:
        raise InputError("--reference-url goes with --url only.", "Without --url the reference is loaded here.")
    return measure_fidelity(
        recipe,
        hardware.detect(),
        text_sha256=text_sha256,
        reference_dtype=options.reference_dtype,
        original=original_of(options),
        fresh=options.fresh,
        progress_as_json=as_json,
    )


def measure_fidelity(
    recipe: Recipe,
    machine: Hardware,
    *,
    text_sha256: str | None = None,
    reference_dtype: Any = None,
    original: ModelRef | None = None,
    fresh: bool = False,
    progress_as_json: bool = False,
) -> Fidelity:
    """What is known of this Recipe and text, said so on stderr, else measured in a job's process.

    Raises RecipeError, InputError, Busy, Cancelled, and the job's own error.
    """
    plan = make_plan(
        recipe,
        machine,
        text_sha256=text_sha256,
        reference_dtype=reference_dtype,
        original=original,
        hub_token=hub_token(),
    )
    with Store() as store:
        known = known_fidelity(plan, store, fresh=fresh)
        seconds = 0.0 if known else judging_seconds(plan, store)
    if known is not None:
        if known.since is not None:
            note(f"known since {known.since.astimezone():%Y-%m-%d %H:%M}; --fresh measures again")
        return known.fidelity
    note(f"it will take about {_time(seconds)}; Ctrl-C stops it")
    answer = run_job(
        "fidelity",
        f"mcp-core fidelity {recipe.quantization.scheme}",
        {
            "recipe": recipe.model_dump(mode="json"),
            "text_sha256": text_sha256,
            "reference_dtype": reference_dtype,
            "original": None if original is None else original.model_dump(mode="json"),
            "fresh": fresh,
        },
        device=conflicts.resolve(recipe, machine).device,
        progress_as_json=progress_as_json,
    )
    return Fidelity.model_validate(answer["fidelity"])


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _add_text(path: Path) -> str:
    """Keep the file's text by its content. Raises InputError for one that cannot be read or is too small."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Give a text file.") from error
    return texts.add(path.name, content).sha256


def _write(path: Path | None, fidelity: Fidelity) -> None:
    if path is None:
        return
    write_file(path, fidelity.model_dump_json(indent=2) + "\n", "It is stored; ask again with another --out.")
