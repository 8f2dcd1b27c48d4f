"""``mcp-core why RUN``: why a Run is as slow as it is, by which figures, and the one change that helps."""

from __future__ import annotations

import argparse

from mcp_core import hardware
from mcp_core.commands.arguments import add_json, hub_token
from mcp_core.commands.output import emit, note, say, table
from mcp_core.commands.run_argument import RUN_HELP, find_run
from mcp_core.decision.store import Store
from mcp_core.errors import McpError, ModelNotFound
from mcp_core.evaluation.roofline import Point
from mcp_core.evaluation.trace_store import list_traces
from mcp_core.evaluation.verdict_words import ms, percent, size
from mcp_core.evaluation.why import Explanation, as_document, explain, fitting_trace
from mcp_core.models import catalog
from mcp_core.models.architecture import ResolvedModel
from mcp_core.results import Run

__all__ = ["add_arguments", "run"]

# Stored Runs among which the effect of a change is looked for.
_HISTORY = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, --json."""
    parser.add_argument("run", metavar="RUN", nargs="?", help=f"{RUN_HELP}; default: the newest stored")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Explain and print; "undecided" is an answer. Raises StoreError, ModelNotFound for an unknown Run, InputError
    for a file that holds none."""
    with Store() as store:
        asked = find_run(store, options.run) if options.run else _newest(store)
        found = explain(
            asked,
            hardware.detect(),
            model=_model(asked),
            trace=fitting_trace(asked, (kept.summary for kept in list_traces())),
            telemetry=store.run_telemetry(asked.id),
            runs=store.list(_HISTORY),
        )
    if options.json:
        emit(as_document(found))
    else:
        _show(found)
    return 0


def _newest(store: Store) -> Run:
    found = next(iter(store.list(1)), None)
    if found is None:
        raise ModelNotFound("No Run is stored yet.", "Make one: mcp-core bench bundled short-chat.")
    return found


def _model(asked: Run) -> ResolvedModel | None:
    """Its sizes, as far as its files are here; without them the verdict knows less."""
    if asked.recipe.model.source == "endpoint":
        return None
    try:
        return catalog.resolve(asked.recipe.model, hub_token=hub_token())
    except McpError as error:
        note(f"the model's sizes are not known: {error.message}")
        return None


def _show(found: Explanation) -> None:
    verdict = found.verdict
    say(f"Run {found.case.run.id}: {verdict.title}, confidence {verdict.finding.confidence}")
    say(f"{verdict.finding.sentence}\n")
    if (failure := found.case.run.failure) is not None:
        say(f"It is {found.case.run.status}: {failure.message}\n")
    for finding in verdict.others[:1] if verdict.cause == "undecided" else (verdict.finding,):
        rows = ((line.what, line.figure, line.limit, line.source) for line in finding.evidence)
        table([("EVIDENCE", "FIGURE", "LIMIT", "FROM"), *rows])
        say("")
    if found.roofline is not None:
        points = (("prompt", found.roofline.prefill), ("decode step", found.roofline.decode))
        heading = ("WORK", "MEASURED", "AT LEAST", "READ", "GFLOP", "MBU", "MFU")
        table([heading, *(_cells(name, point) for name, point in points)])
        say("")
    if (change := verdict.change) is not None:
        say(f"What would help: {change.says} {change.expected} ({change.level})")
        say("  " + " ".join(f"--set {field}={value}" for field, value in change.fields.items()))
    for words in filter(None, (verdict.advice, *verdict.to_decide, *found.notes)):
        note(words)


def _cells(name: str, point: Point) -> tuple[str, ...]:
    def share(value: float | None) -> str:
        return "-" if value is None else percent(value)

    least, took = ("-" if value is None else ms(value) for value in (point.floor_ms, point.ms))
    flops = f"{point.work.flops / 1e9:,.2f}"
    return name, took, least, size(point.work.bytes), flops, share(point.mbu), share(point.mfu)
