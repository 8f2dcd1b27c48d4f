"""``mcp-core report DECISION|RUN… --out F.html``: one file that can be handed on; .csv and .json too."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mcp_core.commands.arguments import require_place
from mcp_core.commands.output import note, size, write_file
from mcp_core.commands.run_argument import RUN_HELP, find_run, is_file_name
from mcp_core.decision.compare import Comparison
from mcp_core.decision.facts import RunFacts
from mcp_core.decision.report import Report, as_csv, as_html, as_json
from mcp_core.decision.shipment import holds_decision, read_decision
from mcp_core.decision.store import Store
from mcp_core.decisions import Decisions
from mcp_core.errors import InputError

__all__ = ["add_arguments", "run"]

_WRITERS = {".html": as_html, ".csv": as_csv, ".json": as_json}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DECISION|RUN…, --out."""
    parser.add_argument(
        "what",
        metavar="DECISION|RUN",
        nargs="+",
        help=f"a file that recommend --out wrote; or Runs, the baseline first: each the {RUN_HELP}",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="its ending says how: .html, .csv, .json"
    )


def run(options: argparse.Namespace) -> int:
    """Write it. Raises InputError for another ending or what is no Decision, ModelNotFound for an unknown Run."""
    write = _WRITERS.get(options.out.suffix.lower())
    if write is None:
        raise InputError(
            f"{options.out} has none of the endings {', '.join(_WRITERS)}.", "Name the file accordingly."
        )
    require_place(options.out)
    with Store() as store:
        text = write(_report(options.what, store))
    write_file(options.out, text, "Choose another place.")
    note(f"written: {options.out} ({size(len(text.encode()))})")
    return 0


def _report(what: Sequence[str], store: Store) -> Report:
    if len(what) == 1 and is_file_name(what[0]) and holds_decision(Path(what[0])):
        return Report(decision=read_decision(Path(what[0])))
    found = {run.id: (text, run) for text in what for run in [find_run(store, text)]}
    given = [run for text, run in found.values() if is_file_name(text)]
    decisions = Decisions(lambda: store)
    runs = [RunFacts.of(run) for _, run in found.values()]
    compared: dict[str, Sequence[Comparison]] = {
        each.id: decisions.compare(runs[0].id, each.id, given)
        for each in runs[1:]
        if each.measured and runs[0].measured
    }
    return Report(runs=runs, comparisons=compared, remarks=decisions.remarks())
