"""What is known of a Recipe's fidelity without measuring: stored earlier, or told by its plan and then stored.

This file does not know how fidelity is measured (``fidelity.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from mcp_core.decision.store import Store
from mcp_core.evaluation.fidelity_plan import Plan
from mcp_core.results import Fidelity

__all__ = ["KnownFidelity", "known_fidelity"]


@dataclass(frozen=True, slots=True)
class KnownFidelity:
    """The answer; ``since`` when it was stored, None where it is told just now."""

    fidelity: Fidelity
    since: datetime | None = None


def known_fidelity(plan: Plan, store: Store, *, fresh: bool = False) -> KnownFidelity | None:
    """None where it has to be measured; ``fresh`` passes over what is stored. Raises StoreError."""
    known = None if fresh or plan.key is None else store.fidelity(plan.key)
    if known is not None:
        return KnownFidelity(known.fidelity, known.created)
    told = plan.without_measuring()
    if told is None:
        return None
    if told.key is not None:  # a model that is not here yet has none
        store.add_fidelity(plan.recipe, told)
    return KnownFidelity(told)
