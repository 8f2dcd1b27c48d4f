"""Sensitivity: how much each group of layers loses when it alone is quantized. Frozen values, no arithmetic.

This file does not know how it is measured (``sensitivity.py``) or what is made of it
(``decision/mixed_recipe.py``).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mcp_core.errors import RecipeError
from mcp_core.recipe import Recipe, SchemeName

__all__ = ["GROUPINGS", "MOST_TOKENS", "GroupSensitivity", "Grouping", "Sensitivity", "require_separable"]

Grouping = Literal["layer", "module"]
GROUPINGS: tuple[Grouping, ...] = ("layer", "module")
# The dense model's log-probabilities of every scored position are kept: 4 bytes x vocabulary each.
MOST_TOKENS = 4096


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class GroupSensitivity(_Value):
    """One group of linear layers, quantized while everything else stayed dense."""

    name: str = Field(description="model.layers.3, or q_proj.")
    pattern: str = Field(description="Pattern for quantization.skip that names just these layers.")
    modules: int = Field(description="Linear layers that the scheme packed.")
    kl_mean: float = Field(description="Mean KL(dense || this group quantized) over scored positions, nats.")
    kl_max: float = Field(description="Largest KL of a position, nats.")
    top1: float = Field(description="Share of positions whose likeliest token is the same.")
    dense_bytes: int = Field(description="Bytes of the packed layers' weights while dense.")
    packed_bytes: int = Field(description="Bytes of the same weights when packed.")


class Sensitivity(_Value):
    """Every group of one model under one scheme, worst first, and all of them quantized together."""

    scheme: SchemeName
    by: Grouping
    groups: tuple[GroupSensitivity, ...]
    together: GroupSensitivity = Field(description="The whole scheme: every group quantized at once.")
    dense_weights_bytes: int = Field(description="Weights of the dense model, unique storages.")
    unpacked: tuple[str, ...] = Field(default=(), description="Linear layers that the scheme leaves dense.")
    tokens: int = Field(description="Scored positions.")
    text_name: str
    text_sha256: str
    seconds: float = Field(description="Measuring, loading excluded.")
    random_weights: bool = Field(
        default=False, description="Random weights: no layer matters more than another, so the order says nothing."
    )


def require_separable(recipe: Recipe) -> None:
    """Raise RecipeError where the Recipe's scheme cannot be tried on one group of layers at a time."""
    scheme = recipe.quantization.scheme
    if scheme == "none":
        raise RecipeError("quantization.scheme: none quantizes nothing.", "Choose the scheme to look into.")
    if scheme == "gguf":
        raise RecipeError("quantization.scheme: a GGUF file is quantized already.", "Look into another scheme.")
