"""Counterparts: the stored Run that differs from another in its Recipe only, so that a change's effect is known.

This file does not know what was changed or why, nor where Runs are kept (``store.py``).
"""

from __future__ import annotations

from collections.abc import Iterable

from mcp_core import conflicts
from mcp_core.hardware import Hardware
from mcp_core.recipe import Recipe
from mcp_core.results import Run

__all__ = ["counterpart", "is_of_device", "key_of"]


def counterpart(run: Run, recipe: Recipe, runs: Iterable[Run]) -> Run | None:
    """The newest good Run of ``recipe`` under the same Workload on the same device; None where there is none.

    The repeat draws new prompts and does not count; ``auto`` and null fields count as what the machine gave them.
    """
    wanted = key_of(recipe, run.hardware)
    fitting = [
        each
        for each in runs
        if each.id != run.id
        and each.status == "ok"
        and each.measurement is not None
        and _workload(each) == _workload(run)
        and is_of_device(each, run.hardware, run.recipe.device)
        and key_of(each.recipe, each.hardware) == wanted
    ]
    return max(fitting, key=lambda each: each.created, default=None)


def key_of(recipe: Recipe, hardware: Hardware) -> str:
    """The same for Recipes that this machine serves alike; without the content hash, known only after a load."""
    resolved = conflicts.resolve(recipe, hardware)
    model = resolved.model.model_copy(update={"sha256": None})
    return resolved.model_copy(update={"model": model}).fingerprint


def _workload(run: Run) -> str:
    return run.workload.model_copy(update={"repeat": 0}).fingerprint


def is_of_device(run: Run, hardware: Hardware, device_id: str) -> bool:
    """Whether the Run was measured on this very device: by its identifier where both have one, since host names
    repeat and change, else by its name and the host's. ``auto`` counts as what its machine made of it."""
    recipe = run.recipe if run.recipe.device != "auto" else conflicts.resolve(run.recipe, run.hardware)
    then, now = run.hardware.device(recipe.device), hardware.device(device_id)
    if then is None or now is None:
        return then is now and run.hardware.host == hardware.host
    if then.uuid and now.uuid:
        return then.uuid == now.uuid
    return (run.hardware.host, then.name) == (hardware.host, now.name)
