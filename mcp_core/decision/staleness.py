"""Stale Runs: measured with versions that their machine has no longer, so that they may not hold any more.

What a machine has now is told by its newest Runs, library by library. This file does not know which versions count
for which engine (``facts.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mcp_core.decision.facts import RunFacts

__all__ = ["broken_versions", "stale_runs"]


def broken_versions(facts: RunFacts, current: Mapping[str, str]) -> str:
    """As "torch 2.11 then, 2.12 now"; empty where nothing changed since."""
    changed = (
        f"{name} {then} then, {current[name]} now"
        for name, then in facts.versions.items()
        if current.get(name, then) != then
    )
    return "; ".join(changed)


def stale_runs(newest_first: Sequence[RunFacts]) -> dict[str, str]:
    """By id of each stale Run, what changed since."""
    now: dict[tuple[str, str], dict[str, str]] = {}
    for each in newest_first:
        place = now.setdefault(_place(each), {})
        if not each.versions.keys() <= place.keys():
            now[_place(each)] = each.versions | place
    outgrown = (each for each in newest_first if not each.versions.items() <= now[_place(each)].items())
    return {each.id: broken_versions(each, now[_place(each)]) for each in outgrown}


def _place(facts: RunFacts) -> tuple[str, str]:
    """Hosts of one name may have other cards, and other drivers for them."""
    return facts.card or facts.host, facts.device
