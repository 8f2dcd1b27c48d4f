"""``mcp-core sensitivity RECIPE``: which layers lose most by the Recipe's scheme, and a mixed Recipe made of it."""

from __future__ import annotations

import argparse

from mcp_core import conflicts, hardware
from mcp_core.commands.arguments import add_json, add_progress, add_recipe, add_set, read_recipe, whole_number
from mcp_core.commands.job_run import run_job
from mcp_core.commands.output import emit, say, size, table
from mcp_core.decision.mixed_recipe import Mixed, keep_within_kl
from mcp_core.evaluation.sensitivity_values import (
    GROUPINGS,
    MOST_TOKENS,
    GroupSensitivity,
    Sensitivity,
    require_separable,
)

__all__ = ["add_arguments", "run"]

# The mixed Recipe that is printed leaves at most this share of the groups' summed KL.
_REMAINING = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, --by, --tokens, --progress, --set, --json."""
    add_recipe(parser)
    add_set(parser)
    add_json(parser)
    parser.add_argument(
        "--by",
        choices=GROUPINGS,
        default="layer",
        help="what is quantized alone: a decoder layer, or a kind of module",
    )
    parser.add_argument(
        "--tokens",
        type=whole_number(128, MOST_TOKENS),
        default=512,
        metavar="N",
        help="tokens to judge on; default: 512",
    )
    add_progress(parser)


def run(options: argparse.Namespace) -> int:
    """Measure and print. Raises RecipeError for what cannot run here, Busy, and what the job raises."""
    recipe, machine = read_recipe(options), hardware.detect()
    require_separable(recipe)
    conflicts.require_runnable(recipe, machine)
    resolved = conflicts.resolve(recipe, machine)
    answer = run_job(
        "sensitivity",
        f"sensitivity to {recipe.quantization.scheme}",
        {"recipe": resolved.model_dump(mode="json"), "by": options.by, "tokens": options.tokens},
        device=resolved.device,
        progress_as_json=options.progress == "json",
    )
    sensitivity = Sensitivity.model_validate(answer)
    if options.json:
        emit(answer)
    else:
        _show(sensitivity)
        _show_mixed(keep_within_kl(sensitivity, _REMAINING))
    return 0


def _show(sensitivity: Sensitivity) -> None:
    say(f"{sensitivity.scheme} on {sensitivity.tokens:,} tokens of {sensitivity.text_name}, a group at a time\n")
    table(
        [
            ("GROUP", "KL MEAN", "KL MAX", "TOP-1", "DENSE", "PACKED"),
            *map(_row, (sensitivity.together, *sensitivity.groups)),
        ]
    )
    if sensitivity.unpacked:
        say(f"\nThe scheme leaves dense: {', '.join(sensitivity.unpacked)}")
    if sensitivity.random_weights:
        say("\nRandom weights: the order of the groups says nothing about a trained model.")


def _row(group: GroupSensitivity) -> tuple[str, ...]:
    figures = (f"{group.kl_mean:.5f}", f"{group.kl_max:.4f}", f"{group.top1:.1%}")
    return (group.name, *figures, size(group.dense_bytes), size(group.packed_bytes))


def _show_mixed(mixed: Mixed) -> None:
    if mixed.keeps_all:
        say("\nMixed: every group would have to stay dense, which is scheme none.")
    elif mixed.kept:
        patterns = ",".join(f'"{group.pattern}"' for group in mixed.kept)
        say(f"\nMixed: {1 - mixed.remaining:.0%} less KL (estimated), {size(mixed.added_bytes)} more weights:")
        say(f"  --set 'quantization.skip=[{patterns}]'")
