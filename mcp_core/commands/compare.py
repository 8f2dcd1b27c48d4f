"""``mcp-core compare A B``: two stored Runs' configurations by the interval of their paired ratio."""

from __future__ import annotations

import argparse

from mcp_core.commands.arguments import add_json
from mcp_core.commands.output import emit, note, say, size, table
from mcp_core.decision.compare import QUANTITIES, Comparison, Quantity
from mcp_core.decision.store import Store
from mcp_core.decisions import Decisions

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A, B, --json."""
    parser.add_argument("a", metavar="A", help="id of a stored Run: what B is compared with")
    parser.add_argument("b", metavar="B", help="id of another; repeats of either configuration count too")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Compare and print; "undecided" is an answer. Raises StoreError, and ModelNotFound for an unknown id."""
    with Store() as store:
        found = Decisions(lambda: store).compare(options.a, options.b)
    if options.json:
        emit([each.model_dump(mode="json") for each in found])
        return 0
    table([("QUANTITY", "A", "B", "B / A", "95 % INTERVAL", "STARTS A, B", "B IS"), *map(_row, found)])
    for why in dict.fromkeys(each.why for each in found if each.why):
        note(why)
    more = max((each.more for each in found), default=0)
    if more:
        say(f"{more} more starts of each would probably tell, in turn: A B A B.")
    return 0


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
    return size(round(value)) if quantity.unit == "bytes" else f"{value:,.4g} {quantity.unit}"
