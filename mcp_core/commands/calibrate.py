"""``mcp-core calibrate RECIPE``: activation ranges for a static scheme, and SmoothQuant's alpha, kept for loading.

This file does not know how they are found (``memory/calibration.py``).
"""

from __future__ import annotations

import argparse

from mcp_core import conflicts, hardware
from mcp_core.calibration_report import CalibrationReport, LayerRange, require_calibrated
from mcp_core.commands.arguments import add_json, add_progress, add_recipe, add_set, read_recipe
from mcp_core.commands.job_run import run_job
from mcp_core.commands.output import emit, say, table

__all__ = ["add_arguments", "run"]

# Layers that are listed: those with the largest outliers.
_LISTED = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, --progress, --set, --json."""
    add_recipe(parser)
    add_set(parser)
    add_json(parser)
    add_progress(parser)


def run(options: argparse.Namespace) -> int:
    """Calibrate and print. Raises RecipeError for what cannot run here, InputError, Busy, the job's own."""
    recipe, machine = read_recipe(options), hardware.detect()
    conflicts.require_runnable(recipe, machine)
    require_calibrated(recipe)
    resolved = conflicts.resolve(recipe, machine)
    answer = run_job(
        "calibrate",
        f"calibration for {recipe.quantization.scheme}",
        {"recipe": resolved.model_dump(mode="json")},
        device=resolved.device,
        progress_as_json=options.progress == "json",
    )
    if options.json:
        emit(answer)
    else:
        _show(CalibrationReport.model_validate(answer))
    return 0


def _show(report: CalibrationReport) -> None:
    used = report.calibrated
    how = "kept from an earlier calibration" if used.reused else "found now"
    say(f"{used.text}: {used.samples} passages of {used.tokens} tokens, {used.seconds:.1f} s, ranges {how}\n")
    outliers = sorted(report.layers, key=lambda each: each.outlier_ratio or 0, reverse=True)
    table([("LARGEST OUTLIERS", "ABSMAX", "MAX / MEDIAN CHANNEL", "TOKENS"), *map(_row, outliers[:_LISTED])])
    if used.alpha_search:
        say("")
        table([("ALPHA", "KL"), *((f"{each.alpha:g}", f"{each.kl:.4f}") for each in used.alpha_search)])
    if used.alpha is not None:
        say(f"\nalpha {used.alpha:g}, {'the best of these' if used.alpha_search else 'as the Recipe says'}")
    if used.random_tokens:
        say("\nRandom weights saw random tokens: the ranges say nothing about a trained model.")


def _row(layer: LayerRange) -> tuple[str, ...]:
    ratio = "-" if layer.outlier_ratio is None else f"{layer.outlier_ratio:.1f}"
    return (layer.name, f"{layer.absmax:.2f}", ratio, f"{layer.tokens:,}")
