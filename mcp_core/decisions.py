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
    from mcp_core.decision.remarks import Remarks
    from mcp_core.decision.store import Store
    from mcp_core.evaluation.request_samples import RequestSamples
    from mcp_core.goal import Goal
    from mcp_core.models.architecture import ResolvedModel
    from mcp_core.recipe import ModelRef
    from mcp_core.results import Run

__all__ = ["Decisions"]

# Fidelities judged apart from Runs that are looked through, newest first.
_MOST_FIDELITIES = 200


class Decisions:
    """Over one store; ``resolve`` looks a model up. Every method raises StoreError where it cannot be read."""

    def __init__(
        self, store: Callable[[], Store], resolve: Callable[[ModelRef], ResolvedModel] | None = None
    ) -> None:
        self._store = store
        self._resolve = resolve

    def facts(self) -> tuple[RunFacts, ...]:
        """Every Run in a line, newest first."""
        return self._store().facts()

    def samples(self, run_ids: Sequence[str]) -> dict[str, RequestSamples]:
        """Request samples by Run."""
        return self._store().samples(run_ids)

    def remarks(self) -> dict[str, Remarks]:
        """Tags and notes by Run, of those that have any."""
        return self._store().remarks()

    def remark(self, run_id: str, tags: Sequence[str] | None = None, note: str | None = None) -> Remarks:
        """Give a Run these tags and this note; None leaves what there is.

        Raises ModelNotFound for a Run that there is not, InputError for what is no tag or too long a note.
        """

        def change(found: Remarks) -> Remarks:
            tagged = found if tags is None else found.with_tags(tags)
            return tagged if note is None else tagged.with_note(note)

        changed = self._store().remark(run_id, change)
        if changed is None:
            raise ModelNotFound(f'There is no Run "{run_id}".', "mcp-core runs lists those there are.")
        return changed

    def recommend(self, goal: Goal) -> Decision:
        """Decide by every stored Run. Raises ModelNotFound for a workload that is no preset's."""
        from mcp_core.decision.recommend import recommend

        store = self._store()
        judged = store.fidelities(_MOST_FIDELITIES)
        return recommend(goal, store.facts(), store.samples, hardware.detect(), judged)

    def with_times(self, decision: Decision) -> Decision:
        """What it lacks of fidelities with their times; looks models up. Raises StoreError."""
        from mcp_core.evaluation.fidelity_time import with_times
        from mcp_core.models import catalog

        if all(each.workload for each in decision.missing):
            return decision
        timed = with_times(decision.missing, hardware.detect(), self._resolve or catalog.resolve, self._store())
        return decision.model_copy(update={"missing": timed})

    def compare(self, a: str, b: str, given: Sequence[Run] = ()) -> tuple[Comparison, ...]:
        """B's configuration against A's, by all Runs of either at the load of the named one; every quantity.

        A sweep's short looks count only where there is nothing longer. Of one configuration: the two themselves.
        Runs ``given`` count as if they were stored.

        Raises ModelNotFound for a Run that there is not.
        """
        from mcp_core.decision.compare import QUANTITIES, compare
        from mcp_core.decision.facts import RunFacts, whole_runs

        brought = {run.id: RunFacts.of(run) for run in given}
        facts = (*brought.values(), *(each for each in self.facts() if each.id not in brought))
        one, other = self.repeats_of(a, facts), self.repeats_of(b, facts)
        if a != b and one == other:
            one, other = (tuple(each for each in one if each.id == run_id) for run_id in (a, b))
        one, other = whole_runs(one), whole_runs(other)
        samples = self._store().samples([each.id for each in (*one, *other)])
        found = tuple(compare(one, other, samples, quantity) for quantity in QUANTITIES.values())
        return tuple(each for each in found if each.a is not None and each.b is not None) or found[:1]

    def speeds(
        self, baseline: RunFacts, shown: Sequence[RunFacts], facts: Sequence[RunFacts]
    ) -> dict[str, Comparison]:
        """By Run of ``shown``: output tokens/s of its configuration against the baseline's, all repeats of both.

        Each at its own load, where the baseline's configuration was measured at that load too.
        """
        from mcp_core.decision.compare import compare
        from mcp_core.decision.facts import whole_runs

        repeats: dict[tuple[object, ...], list[RunFacts]] = {}
        for each in facts:
            repeats.setdefault(each.kind, []).append(each)
        found: dict[tuple[object, ...], Comparison] = {}
        for each in shown:
            if each.kind not in found:
                like = repeats.get(baseline.kind_under(each)) or repeats[baseline.kind]
                found[each.kind] = compare(whole_runs(like), whole_runs(repeats[each.kind]), {})
        return {each.id: found[each.kind] for each in shown}

    def repeats_of(self, run_id: str, facts: Sequence[RunFacts]) -> tuple[RunFacts, ...]:
        """Runs of the same configuration under the same load; alone where something keeps it from being compared.

        Raises ModelNotFound for a Run that there is not.
        """
        named = next((each for each in facts if each.id == run_id), None)
        if named is None:
            raise ModelNotFound(f'There is no Run "{run_id}".', "mcp-core runs lists those there are.")
        if named.reasons or not named.measured:
            return (named,)
        return tuple(each for each in facts if each.kind == named.kind)
