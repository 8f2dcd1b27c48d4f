"""What costs otherwise on random weights than on a trained model's, so that its speed may not be compared.

Memory is the same, and so is speed where it does not depend on the data: dense and weight-only schemes. This file
does not know how anything is measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from mcp_core.models.shapes import architecture_of
from mcp_core.recipe import Recipe

__all__ = ["data_dependent_costs"]


def data_dependent_costs(recipe: Recipe) -> Iterator[str]:
    """Each cost of this Recipe that random weights falsify, in words; none where the weights are not random."""
    if recipe.model.source != "shape":
        return
    if recipe.quantization.scheme == "bnb-int8" and recipe.quantization.outlier_threshold != 0:
        yield "random weights: LLM.int8 sees hundreds of outlier columns where a trained model has a handful"
    if architecture_of(recipe.model).active_experts:
        yield "random weights: experts are routed at random"
    if recipe.speculation != "off":
        yield "random weights: hardly a guessed token is accepted"
