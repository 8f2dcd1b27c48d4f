"""Why: one Run explained, from what is stored of it and what is known of its machine; as a document for programs.

This file does not know where Runs, traces and telemetry are kept, or how an explanation is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from mcp_core import conflicts
from mcp_core.ceilings import Ceilings
from mcp_core.decision.counterparts import is_of_device
from mcp_core.errors import McpError
from mcp_core.evaluation.conditions import remarks
from mcp_core.evaluation.roofline import Point, Roofline, roofline_of
from mcp_core.evaluation.verdict_values import Case, Finding, Verdict
from mcp_core.evaluation.verdicts import decide
from mcp_core.hardware import Hardware
from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.footprint import Predictor
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.results import Run
from mcp_core.trace_summary import TraceSummary

__all__ = ["Explanation", "as_document", "explain", "fitting_trace"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A Run, all that is known of it, and its verdict. ``notes`` say what to bear in mind."""

    case: Case
    verdict: Verdict
    notes: tuple[str, ...] = ()

    @property
    def roofline(self) -> Roofline | None:
        """Its place below the ceilings; None where the model's sizes are not known."""
        return self.case.roofline


def explain(
    run: Run,
    machine: Hardware,
    *,
    model: ResolvedModel | None = None,
    trace: TraceSummary | None = None,
    telemetry: RunTelemetry | None = None,
    runs: Iterable[Run] = (),
) -> Explanation:
    """``machine`` is this one, where a change would run; ``runs`` are those among which it may be measured."""
    ceilings, later = _ceilings(run, machine)
    case = Case(
        run=run,
        machine=machine,
        roofline=_roofline(run, model, ceilings),
        ceilings=ceilings,
        trace=trace,
        telemetry=telemetry,
        model=model,
        runs=tuple(runs),
    )
    notes = [later] if later else []
    told = [*filter(_disturbs, run.comparable.reasons), *remarks(run.conditions)]
    notes += [f"{each[:1].upper()}{each[1:]}." for each in told]
    if trace is not None and trace.run_id != run.id:
        notes.append("The profile is of the same Recipe, not of this very Run.")
    return Explanation(case, decide(case), tuple(notes))


def fitting_trace(run: Run, traces: Iterable[TraceSummary]) -> TraceSummary | None:
    """The trace of this Run, else of its Recipe the one whose decode steps are most like the Run's."""
    listed = tuple(traces)
    own = next((each for each in listed if each.run_id == run.id or each.trace_id == run.trace_id), None)
    fingerprints = {run.recipe.fingerprint, conflicts.resolve(run.recipe, run.hardware).fingerprint}
    alike = [each for each in listed if each.recipe_fingerprint in fingerprints]
    return own or min(alike, key=lambda each: _distance(each, run), default=None)


def _distance(trace: TraceSummary, run: Run) -> float:
    """How far a trace's decode step is from the Run's, as the logarithm of their ratio."""
    step_ms = run.measurement.engine_tpot_ms or run.measurement.tpot_ms.p50 if run.measurement else None
    return abs(math.log(trace.decode.step_ms / step_ms)) if trace.decode and step_ms else math.inf


def as_document(found: Explanation) -> dict[str, Any]:
    """For ``mcp-core why --json``: verdict, evidence, change, what else was found, the roofline."""
    verdict, run = found.verdict, found.case.run
    change = verdict.change
    return {
        "run": run.id,
        "verdict": verdict.cause,
        "title": verdict.title,
        **_finding(verdict.finding),
        "change": change
        and {
            "fields": dict(change.fields),
            "says": change.says,
            "expected": change.expected,
            "level": change.level,
            "run": change.run_id,
        },
        "advice": verdict.advice or None,
        "to_decide": list(verdict.to_decide),
        "others": [{"cause": each.cause, **_finding(each)} for each in verdict.others],
        "roofline": _roofline_document(found.roofline),
        "trace": found.case.trace.trace_id if found.case.trace else None,
        "notes": list(found.notes),
    }


def _ceilings(run: Run, machine: Hardware) -> tuple[Ceilings | None, str]:
    """Those stored with the Run, else this machine's if it is the same device; and whether they came later."""
    if run.recipe.model.source == "endpoint":
        return None, ""  # whatever machine that is
    recipe = conflicts.resolve(run.recipe, run.hardware)
    stored = run.hardware.ceilings_of(recipe.device, recipe.threads)
    if stored is not None:
        return stored, ""
    if not is_of_device(run, machine, recipe.device):
        return None, ""
    later = machine.ceilings_of(recipe.device, recipe.threads)
    return later, "The device's ceilings were measured after this Run." if later else ""


def _roofline(run: Run, model: ResolvedModel | None, ceilings: Ceilings | None) -> Roofline | None:
    if model is None:
        return None
    try:
        predictor = Predictor(conflicts.resolve(run.recipe, run.hardware), model, run.hardware)
        return roofline_of(run, predictor, ceilings)
    except McpError:
        return None  # sizes that cannot be known here: a library is missing, or the files changed


def _disturbs(reason: str) -> bool:
    """Whether what makes a Run incomparable also lengthens its times."""
    return reason.partition(":")[0] in ("noisy", "client-limited")


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "sentence": finding.sentence,
        "share": round(finding.share, 4),
        "confidence": finding.confidence,
        "evidence": [asdict(line) for line in finding.evidence],
    }


def _roofline_document(roofline: Roofline | None) -> dict[str, Any] | None:
    if roofline is None:
        return None
    return {
        "product": roofline.product,
        "sequences": roofline.sequences,
        "prompt_tokens": roofline.prompt_tokens,
        "context_tokens": roofline.context_tokens,
        "prefill": _point(roofline.prefill),
        "decode": _point(roofline.decode),
        "ceilings": roofline.ceilings.model_dump(mode="json") if roofline.ceilings else None,
    }


def _point(point: Point) -> dict[str, float | None]:
    return {
        "ms": point.ms,
        "floor_ms": point.floor_ms,
        "share_of_floor": point.share_of_floor,
        "mbu": point.mbu,
        "mfu": point.mfu,
        "bytes": point.work.bytes,
        "flops": point.work.flops,
        "flops_per_byte": point.work.intensity,
    }
