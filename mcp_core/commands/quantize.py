"""``mcp-core quantize RECIPE --out DIR``: the quantized model written as a checkpoint that others can serve."""

from __future__ import annotations

import argparse
from pathlib import Path

from mcp_core import conflicts, hardware
from mcp_core.checkpoint_formats import FORMATS, SavedCheckpoint, require_new_folder, require_savable
from mcp_core.commands.arguments import add_json, add_progress, add_recipe, add_set, read_recipe
from mcp_core.commands.job_run import run_job
from mcp_core.commands.output import emit, say, size, table

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, --out, --format, --progress, --set, --json."""
    add_recipe(parser)
    add_set(parser)
    add_json(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that is new or empty")
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="library",
        help="; ".join(f"{name}: {about}" for name, about in FORMATS.items()),
    )
    add_progress(parser)


def run(options: argparse.Namespace) -> int:
    """Write it and say what came of it. Raises RecipeError, InputError, Busy, and what the job raises."""
    recipe, machine = read_recipe(options), hardware.detect()
    conflicts.require_runnable(recipe, machine)
    resolved = conflicts.resolve(recipe, machine)
    require_savable(resolved, resolved.device.partition(":")[0], options.format)
    require_new_folder(options.out)
    answer = run_job(
        "quantize",
        f"{recipe.quantization.scheme} written to {options.out.name}",
        {
            "recipe": resolved.model_dump(mode="json"),
            "out": str(options.out.absolute()),
            "format": options.format,
        },
        device=resolved.device,
        progress_as_json=options.progress == "json",
    )
    if options.json:
        emit(answer)
    else:
        _show(SavedCheckpoint.model_validate(answer))
    return 0


def _show(saved: SavedCheckpoint) -> None:
    rows = [("Folder", saved.folder), ("Format", saved.format), ("On disk", size(saved.bytes))]
    if saved.weights_bytes is not None:
        rows.append(("Weights in memory", size(saved.weights_bytes)))
    if saved.quantized_modules:
        rows += [
            ("Layers packed", str(saved.quantized_modules)),
            (
                "Layers left dense",
                ", ".join(f"{name} ({why})" for name, why in saved.skip_reasons.items()) or "none",
            ),
        ]
    if saved.loaded_again:
        rows.append(("Loaded again", saved.loaded_again))
    table(rows)
    say(f"\nServed by: {saved.deployable_as}")
    if saved.format == "llmcompressor":
        say("Quantized anew, so judge what was written: mcp-core fidelity RECIPE --original MODEL")
