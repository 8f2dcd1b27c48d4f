"""CalibrationReport: what a calibration found, for pages and commands; and which Recipes are calibrated at all.

This file does not know how ranges are found (``memory/calibration.py``).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from mcp_core import texts
from mcp_core.conflicts import options_read_by
from mcp_core.errors import RecipeError
from mcp_core.recipe import Recipe
from mcp_core.results import Calibrated
from mcp_core.schemes import SCHEMES

__all__ = ["CalibrationReport", "LayerRange", "require_calibrated", "require_text"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerRange(_Value):
    """What went into one linear layer."""

    name: str
    absmax: float = Field(description="Largest magnitude over all channels and tokens.")
    outlier_ratio: float | None = Field(
        description="Largest channel's magnitude over the median channel's; null where half of them are silent."
    )
    tokens: int = Field(description="Tokens that reached it; an expert sees a part of the text.")
    packed: bool = Field(description="The Recipe quantizes it.")


class CalibrationReport(_Value):
    """The answer of the job "calibrate"."""

    scheme: str
    calibrated: Calibrated
    layers: tuple[LayerRange, ...] = Field(description="In the model's order.")


def require_calibrated(recipe: Recipe) -> None:
    """Raise RecipeError unless the scheme is calibrated, InputError unless its text is kept here."""
    scheme = recipe.quantization.scheme
    if "calibration" not in options_read_by(scheme):
        static = ", ".join(each for each in SCHEMES if "calibration" in options_read_by(each))
        raise RecipeError(f"quantization.scheme: {scheme} is not calibrated.", f"These are: {static}.")
    require_text(recipe)


def require_text(recipe: Recipe) -> None:
    """Raise InputError when the scheme is calibrated and its text is not kept here."""
    if "calibration" in options_read_by(recipe.quantization.scheme):
        texts.get(recipe.quantization.calibration.text)
