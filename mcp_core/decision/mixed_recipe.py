"""A mixed Recipe: the scheme everywhere but in the groups of layers that lose most by it. Pure arithmetic.

KL of small disturbances adds up roughly, so the sum over groups that stay quantized estimates the whole; the
mixed Recipe's own fidelity has to be measured. This file does not know how sensitivity is measured
(``evaluation/sensitivity.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_core.evaluation.sensitivity_values import GroupSensitivity, Sensitivity
from mcp_core.recipe import Recipe

__all__ = ["Mixed", "keep_within_kl", "keep_within_memory"]


@dataclass(frozen=True, slots=True)
class Mixed:
    """Groups that stay dense (worst first), what that adds to the weights, and the share of KL that remains.

    ``remaining`` is the estimated KL of the mixed Recipe over that of the scheme everywhere, 0..1. ``keeps_all``:
    no group is left to quantize.
    """

    kept: tuple[GroupSensitivity, ...]
    added_bytes: int
    weights_bytes: int
    remaining: float
    keeps_all: bool = False

    def recipe(self, recipe: Recipe) -> Recipe:
        """``recipe`` with these groups, and only these, kept dense; scheme ``none`` when that is every group."""
        if self.keeps_all:
            return recipe.replace({"quantization": {}})
        return recipe.replace({"quantization.skip": sorted(group.pattern for group in self.kept)})


def keep_within_kl(sensitivity: Sensitivity, share: float) -> Mixed:
    """Keep as few bytes dense as leaves at most ``share`` (0..1) of the groups' summed KL."""
    kept: list[GroupSensitivity] = []
    for group in _by_worth(sensitivity):
        if _remaining(sensitivity, kept) <= share:
            break
        kept.append(group)
    return _mixed(sensitivity, kept)


def keep_within_memory(sensitivity: Sensitivity, share: float) -> Mixed:
    """Keep dense what loses most for its bytes, the weights growing by at most ``share`` of their packed size."""
    budget_bytes = share * _packed_weights_bytes(sensitivity)
    kept: list[GroupSensitivity] = []
    for group in _by_worth(sensitivity):
        if _added_bytes((*kept, group)) <= budget_bytes:
            kept.append(group)
    return _mixed(sensitivity, kept)


def _by_worth(sensitivity: Sensitivity) -> list[GroupSensitivity]:
    """Groups by the KL that a byte kept dense takes away, most first; one that loses nothing is not kept."""
    losing = [group for group in sensitivity.groups if group.kl_mean > 0]
    return sorted(losing, key=lambda group: group.kl_mean / max(1, _added_bytes((group,))), reverse=True)


def _mixed(sensitivity: Sensitivity, kept: list[GroupSensitivity]) -> Mixed:
    added = _added_bytes(tuple(kept))
    return Mixed(
        kept=tuple(sorted(kept, key=lambda group: group.kl_mean, reverse=True)),
        added_bytes=added,
        weights_bytes=_packed_weights_bytes(sensitivity) + added,
        remaining=_remaining(sensitivity, kept),
        keeps_all=len(kept) == len(sensitivity.groups),
    )


def _remaining(sensitivity: Sensitivity, kept: list[GroupSensitivity]) -> float:
    total = sum(max(0.0, group.kl_mean) for group in sensitivity.groups)
    taken = sum(max(0.0, group.kl_mean) for group in kept)
    return 1.0 - taken / total if total > 0 else 0.0


def _added_bytes(groups: tuple[GroupSensitivity, ...]) -> int:
    return sum(group.dense_bytes - group.packed_bytes for group in groups)


def _packed_weights_bytes(sensitivity: Sensitivity) -> int:
    saved = sensitivity.together.dense_bytes - sensitivity.together.packed_bytes
    return sensitivity.dense_weights_bytes - saved
