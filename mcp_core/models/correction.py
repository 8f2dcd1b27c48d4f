"""Correction: what measured Runs of this machine add to the planner's runtime term.

The rule: of Runs that were predicted and measured on this kind of device with this family of schemes, the median
of measured - predicted ``peak_bytes`` over the newest ``NEWEST``. From ``FEWEST`` Runs on, so that one odd Run
decides nothing, and at most ``MOST_SHARE`` of the median measured peak either way, so that a mistake shows as an
error and is not learned. A Run's own prediction carries no correction, so corrections do not add up.
This file does not know where Runs are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from mcp_core.recipe import Recipe
from mcp_core.results import Run

__all__ = [
    "FEWEST",
    "HISTORY_RUNS",
    "MOST_SHARE",
    "NEWEST",
    "NONE",
    "Correction",
    "Error",
    "correction_of",
    "error_of",
    "errors_of",
]

FEWEST, NEWEST = 3, 20
# So many of the newest Runs, of whatever kind, are looked at.
HISTORY_RUNS = 300
MOST_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Correction:
    """``bytes`` to add, from so many ``runs``; both 0 where there are too few."""

    bytes: int = 0
    runs: int = 0


NONE = Correction()


@dataclass(frozen=True, slots=True)
class Error:
    """One Run's prediction against its measured peak, bytes."""

    run_id: str
    predicted_bytes: int
    measured_bytes: int

    @property
    def off_bytes(self) -> int:
        """Measured less predicted."""
        return self.measured_bytes - self.predicted_bytes

    @property
    def share(self) -> float:
        """(predicted - measured) / measured: below 0 where too little was predicted."""
        return -self.off_bytes / self.measured_bytes


def errors_of(runs: Iterable[Run], recipe: Recipe, host: str) -> tuple[Error, ...]:
    """Errors of Runs of this host on the same kind of device with the same family of schemes, in their order."""
    alike = (run for run in runs if run.hardware.host == host and _is_kin(run, recipe))
    return tuple(error for run in alike if run.status == "ok" and (error := error_of(run)) is not None)


def error_of(run: Run) -> Error | None:
    """None where it was not predicted or not measured."""
    measured = run.memory.peak_bytes if run.memory else None
    if run.predicted is None or not measured:
        return None
    return Error(run.id, run.predicted.peak_bytes, measured)


def correction_of(errors: tuple[Error, ...]) -> Correction:
    """By the rule above; ``errors`` are newest first."""
    newest = errors[:NEWEST]
    if len(newest) < FEWEST:
        return NONE
    most = MOST_SHARE * median(error.measured_bytes for error in newest)
    off = median(error.off_bytes for error in newest)
    return Correction(round(max(-most, min(most, off))), len(newest))


def _is_kin(run: Run, recipe: Recipe) -> bool:
    """A checkpoint that came quantized has scheme none, and says nothing about models that are dense."""
    if run.effective and run.effective.scheme.startswith("checkpoint:") and not _same_model(run.recipe, recipe):
        return False
    return _kin(run.recipe) == _kin(recipe)


def _same_model(one: Recipe, other: Recipe) -> bool:
    return (one.model.source, one.model.id) == (other.model.source, other.model.id)


def _kin(recipe: Recipe) -> tuple[str, str]:
    """Kind of device, and the library that packs (bnb, torchao, classic, none)."""
    return recipe.device.split(":")[0], recipe.quantization.scheme.split("-")[0]
