"""Decisions: what the stored Runs come to, for pages and commands: a recommendation, a comparison of two.

Pages reach it as ``workbench.decisions``; every method may be called from any thread. This file does not know how
a decision is made (``decision/recommend.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mcp_core import hardware
from mcp_core.errors import ModelNotFound

# numpy and SQLAlchemy take half a second to import: not before a page decides.
if TYPE_CHECKING:
    from mcp_core.decision.compare import Comparison
    from mcp_core.decision.decision import Decision
    from mcp_core.decision.facts import RunFacts
    from mcp_core.decision.store import Store
    from mcp_core.goal import Goal

__all__ = ["Decisions"]

# Fidelities judged apart from Runs that are looked through, newest first.
_MOST_FIDELITIES = 200


class Decisions:
    """Over one store. Every method raises StoreError where it cannot be read."""

    def __init__(self, store: Callable[[], Store]) -> None:
        self._store = store

    def facts(self) -> tuple[RunFacts, ...]:
        """Every Run in a line, newest first."""
        return self._store().facts()

    def recommend(self, goal: Goal) -> Decision:
        """Decide by every stored Run. Raises ModelNotFound for a workload that is no preset's."""
        from mcp_core.decision.recommend import recommend

        store = self._store()
        judged = store.fidelities(_MOST_FIDELITIES)
        return recommend(goal, store.facts(), store.samples, hardware.detect(), judged)

    def compare(self, a: str, b: str) -> tuple[Comparison, ...]:
        """B's configuration against A's, by all Runs of either at the load of the named one; every quantity.

        Raises ModelNotFound for a Run that there is not.
        """
        facts = self.facts()
        return self.compare_runs(self._like(a, facts), self._like(b, facts))

    def compare_runs(self, a: Sequence[RunFacts], b: Sequence[RunFacts]) -> tuple[Comparison, ...]:
        """B against A in every quantity that was measured in both; without one, the throughput says why."""
        from mcp_core.decision.compare import QUANTITIES, compare

        samples = self._store().samples([each.id for each in (*a, *b)])
        found = tuple(compare(a, b, samples, quantity) for quantity in QUANTITIES.values())
        return tuple(each for each in found if each.a is not None and each.b is not None) or found[:1]

    def _like(self, run_id: str, facts: Sequence[RunFacts]) -> tuple[RunFacts, ...]:
        """Good Runs of the same configuration under the same load; the named one alone where it is none of them."""
        named = next((each for each in facts if each.id == run_id), None)
        if named is None:
            raise ModelNotFound(f'There is no Run "{run_id}".', "mcp-core runs lists those there are.")
        same = tuple(each for each in facts if _kind(each) == _kind(named))
        return same if named in same else (named,)


def _kind(facts: RunFacts) -> tuple[object, ...]:
    return (
        facts.configuration,
        facts.device,
        facts.traffic,
        facts.load_kind,
        facts.load,
        facts.measured,
        facts.reasons == (),
        tuple(sorted(facts.versions.items())),
    )
