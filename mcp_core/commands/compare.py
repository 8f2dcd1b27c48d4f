"""``mcp-core compare A B``: two Runs' configurations by the interval of their paired ratio."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mcp_core.commands.arguments import add_json
from mcp_core.commands.output import emit, note, say, size, table
from mcp_core.commands.run_argument import RUN_HELP, find_run, is_file_name
from mcp_core.decision.compare import QUANTITIES, Comparison, Quantity
from mcp_core.decision.facts import configuration_name
from mcp_core.decision.figures import figure
from mcp_core.decision.store import Store
from mcp_core.decisions import Decisions
from mcp_core.errors import McpError
from mcp_core.results import Failure, Run

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A, B, --json."""
    parser.add_argument("a", metavar="A", help=f"what B is compared with: {RUN_HELP}")
    parser.add_argument("b", metavar="B", help="another; stored repeats of either configuration count too")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Compare and print; "undecided" is an answer. Raises StoreError, ModelNotFound for an unknown Run, InputError
    for a file that holds none, McpError for a Run without figures."""
    with Store() as store:
        a, b = find_run(store, options.a), find_run(store, options.b)
        for each in (a, b):
            _require_figures(each)
        given = [run for run, text in ((a, options.a), (b, options.b)) if is_file_name(text)]
        found = Decisions(lambda: store).compare(a.id, b.id, given)
    if options.json:
        emit([each.model_dump(mode="json") for each in found])
        return 0
    for letter, each in (("A", a), ("B", b)):
        say(f"{letter}: {each.recipe.model.id}, {configuration_name(each.recipe)}; {each.workload.name}")
    say("")
    table([("QUANTITY", "A", "B", "B / A", "95 % INTERVAL", "STARTS A, B", "B IS"), *map(_row, found)])
    for words in _reasons(found):
        note(words)
    more = max((each.more for each in found), default=0)
    if more:
        say(f"{more} more starts of each would probably tell, in turn: A B A B.")
    return 0


def _reasons(found: Sequence[Comparison]) -> list[str]:
    """Why it is undecided and what else to know; what does not hold for every quantity names those it holds for."""
    holds: dict[str, list[str]] = {}
    for each in found:
        for words in filter(None, (each.why, each.caveat)):
            holds.setdefault(words, []).append(QUANTITIES[each.quantity].label)
    return [
        words if len(labels) == len(found) else f"{', '.join(labels)}: {words}" for words, labels in holds.items()
    ]


def _require_figures(run: Run) -> None:
    """A Run that did not come to its end cannot answer, whatever others of its configuration say."""
    if run.status == "ok" and run.measurement is not None:
        return
    why = run.failure or Failure(kind="error", message="Nothing was measured.")
    raise McpError(
        f"Run {run.id} has no figures to compare, it is {run.status}: {why.message}",
        why.hint or "Choose a Run that ended well.",
    )


def _row(each: Comparison) -> tuple[str, ...]:
    quantity, ratio = QUANTITIES[each.quantity], each.ratio
    a, b = (_figure(value, quantity) for value in (each.a, each.b))
    interval = "-" if ratio is None or ratio.low is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
    return (
        quantity.label,
        a,
        b,
        "-" if ratio is None else f"{ratio.value:.3f}",
        interval,
        "{}, {}".format(*each.starts),
        each.verdict,
    )


def _figure(value: float | None, quantity: Quantity) -> str:
    if value is None:
        return "-"
    return size(round(value)) if quantity.unit == "bytes" else f"{figure(value)} {quantity.unit}"
