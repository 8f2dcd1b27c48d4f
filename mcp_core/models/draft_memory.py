"""Draft: the model that guesses tokens, beside the one it guesses for: how it is loaded and what it takes.

It is dense, in the same dtype on the same device, and has a dynamic cache of its own over the same tokens. Its
activations come between the other's and are smaller. This file does not know what is free (``footprint.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.kv_memory import keys_and_values
from mcp_core.models.packing import PackedWeights, pack
from mcp_core.models.served_load import ServedLoad
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.schemes import DeviceKind

__all__ = ["Draft", "draft_of", "draft_recipe"]


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft model that was looked up, and its Recipe."""

    recipe: Recipe
    resolved: ResolvedModel

    def weights(self, kind: DeviceKind) -> PackedWeights:
        """Its weights on a device of that kind."""
        return pack(self.resolved.architecture, self.recipe.dtype, self.recipe.quantization, kind)

    def kv_bytes(self, load: ServedLoad, kind: DeviceKind) -> int:
        """Its own keys and values of the load's tokens."""
        return keys_and_values(self.recipe, self.resolved.architecture, load, kind).total_bytes


def draft_recipe(recipe: Recipe) -> Recipe | None:
    """How the draft of this Recipe is loaded; None where it names none."""
    if recipe.draft is None:
        return None
    return Recipe(model=recipe.draft, device=recipe.device, threads=recipe.threads, dtype=recipe.dtype)


def draft_of(recipe: Recipe, resolve: Callable[[ModelRef], ResolvedModel]) -> Draft | None:
    """The draft looked up; None where the Recipe names none. Raises as ``resolve`` does."""
    own = draft_recipe(recipe)
    return None if own is None else Draft(own, resolve(own.model))
