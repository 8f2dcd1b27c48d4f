"""Verdicts: the cause that explains most of a Run's time, with the one change that is most likely to help.

This file does not know how a cause is found (``findings.py``), which change helps (``remedies.py``) or how anything
is shown.
"""

from __future__ import annotations

from collections.abc import Iterator

from mcp_core.evaluation.findings import DECIDING, findings_of
from mcp_core.evaluation.remedies import advice_for, change_for
from mcp_core.evaluation.time_shares import request_shares
from mcp_core.evaluation.verdict_values import CAUSES, Case, Finding, Verdict
from mcp_core.evaluation.verdict_words import percent

__all__ = ["decide"]


def decide(case: Case) -> Verdict:
    """The cause that explains most, with the one change that is most likely to help."""
    found = findings_of(case)
    best = next(iter(found), None)
    if best is None or not (best.urgent or best.share >= DECIDING):
        return _undecided(case, found)
    return Verdict(
        finding=best,
        change=change_for(best, case),
        advice=advice_for(best.cause, case),
        to_decide=() if best.cause in ("queue", "capacity", "throttled") else tuple(_trace_missing(case)),
        others=tuple(found[1:]),
    )


def _undecided(case: Case, found: tuple[Finding, ...]) -> Verdict:
    best = next(iter(found), None)
    if case.run.measurement is None:
        sentence = "This Run measured nothing, so there is no time to explain."
    elif best is None:
        sentence = "Nothing that is known of this Run explains its time."
    else:
        known = CAUSES[best.cause][0].lower()
        explains = f"explains {percent(best.share)} of a request's time; {percent(DECIDING)} decides"
        sentence = f"The largest known cause ({known}) {explains}."
    finding = Finding("undecided", best.share if best else 0.0, sentence, (), "low")
    return Verdict(finding, to_decide=tuple(_missing(case)), others=found)


def _missing(case: Case) -> Iterator[str]:
    if case.run.measurement is None:
        yield "Measure it again once its failure is cleared."
        return
    yield from _trace_missing(case)
    if case.ceilings is None:
        yield "The device's ceilings (mcp-core doctor --measure): bandwidth and FLOP/s to hold the times against."
    if request_shares(case.run) is None:
        yield "A server that tells its own timing, as MCP's worker does."


def _trace_missing(case: Case) -> Iterator[str]:
    if case.trace is None and case.recipe.engine == "transformers":
        recipe = case.recipe
        settings = f"batching {recipe.batching.mode}, KV {recipe.kv.kind}, compile {recipe.compile}"
        yield f"A profile of this very Recipe ({settings}): it splits every step into its parts."
