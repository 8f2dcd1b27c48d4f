"""Admission: every check that can be made before a worker is started. Blocks; takes milliseconds to seconds.

This file does not know how a worker is started.
"""

from __future__ import annotations

from mcp_core import conflicts, hardware
from mcp_core.calibration_report import require_text
from mcp_core.engines import FOREIGN
from mcp_core.errors import DoesNotFit, RecipeError
from mcp_core.models import catalog, footprint
from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.draft_memory import Draft, draft_of
from mcp_core.models.stored_quantization import require_loadable_here, require_quantized_once
from mcp_core.recipe import Recipe

__all__ = ["admit", "require_foreign", "require_room"]


def admit(recipe: Recipe, *, hub_token: str | None = None, force: bool = False) -> Recipe:
    """The Recipe as this machine will run it, device and threads filled in.

    Raises RecipeError for what it cannot run, InputError for a calibration text that is not here, ModelNotFound,
    InvalidModel, UnsafeModel or HubError for the model, and DoesNotFit, which ``force`` leaves out.
    """
    machine = hardware.detect()
    conflicts.require_runnable(recipe, machine)
    require_text(recipe)
    recipe = conflicts.resolve(recipe, machine)
    resolved = catalog.resolve(recipe.model, hub_token=hub_token)
    draft = draft_of(recipe, lambda ref: catalog.resolve(ref, hub_token=hub_token))
    if recipe.engine in FOREIGN:
        require_foreign(recipe, resolved, machine, draft, force=force)
        return recipe
    require_loadable_here(resolved.quantized, recipe, machine)
    if not force:
        require_room(recipe, resolved, machine, draft)
    return recipe


def require_room(
    recipe: Recipe, resolved: ResolvedModel, machine: hardware.Hardware, draft: Draft | None = None
) -> None:
    """Raise DoesNotFit, with the numbers, when the larger of loading and serving exceeds what is free."""
    predicted = footprint.estimate(recipe, resolved, machine, draft=draft)
    if not predicted.fits:
        raise DoesNotFit(
            predicted.reason,
            "Choose a smaller dtype, scheme or kv.max_context, or unload another model. "
            "To load it all the same: Load anyway on the page, --force on the command line.",
        )


def require_foreign(
    recipe: Recipe,
    resolved: ResolvedModel,
    machine: hardware.Hardware,
    draft: Draft | None = None,
    *,
    force: bool = False,
) -> None:
    """What can be said before another engine is started: it loads this checkpoint, and the weights fit.

    How much it takes beside them is its own affair, so only their size is compared. Raises RecipeError, DoesNotFit.
    """
    engine, stored = FOREIGN[recipe.engine], resolved.quantized
    if stored is not None and stored.method not in engine.stored_methods:
        raise RecipeError(
            f"model: {engine.title} loads no checkpoint in {stored.label}.",
            f"It loads {', '.join(sorted(engine.stored_methods))}.",
        )
    if stored is not None:
        require_quantized_once(stored, recipe)
    device = machine.device(recipe.device)
    predicted = footprint.estimate(recipe, resolved, machine, draft=draft)
    weights = predicted.weights_bytes + predicted.draft_weights_bytes
    free = device.memory_free_bytes if device else 0
    if device is not None and weights > free and not force:
        raise DoesNotFit(
            f"The weights take {weights / 1e9:.1f} GB; {device.id} has {free / 1e9:.1f} GB free.",
            "Choose a smaller model or scheme, or unload another model.",
        )
