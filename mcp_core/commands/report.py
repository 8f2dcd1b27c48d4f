"""``mcp-core report DECISION|RUN… --out F.html``: one file that can be handed on; .csv and .json too."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mcp_core.commands.arguments import require_place
from mcp_core.commands.output import note, write_file
from mcp_core.decision.compare import Comparison
from mcp_core.decision.facts import RunFacts
from mcp_core.decision.report import Report, as_csv, as_html, as_json
from mcp_core.decision.shipment import read_decision
from mcp_core.decision.store import Store
from mcp_core.decisions import Decisions
from mcp_core.errors import InputError, ModelNotFound

__all__ = ["add_arguments", "run"]

_WRITERS = {".html": as_html, ".csv": as_csv, ".json": as_json}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DECISION|RUN…, --out."""
    parser.add_argument(
        "what", metavar="DECISION|RUN", nargs="+", help="a Decision's file, or ids of Runs, the baseline first"
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
    note(f"written: {options.out} ({len(text) / 1e6:.1f} MB)")
    return 0


def _report(what: Sequence[str], store: Store) -> Report:
    if len(what) == 1 and Path(what[0]).is_file():
        return Report(decision=read_decision(Path(what[0])))
    decisions = Decisions(lambda: store)
    runs = [_known(each, decisions.facts()) for each in what]
    compared: dict[str, Sequence[Comparison]] = {
        each.id: decisions.compare(runs[0].id, each.id) for each in runs[1:] if each.measured and runs[0].measured
    }
    return Report(runs=runs, comparisons=compared, remarks=decisions.remarks())


def _known(run_id: str, facts: Sequence[RunFacts]) -> RunFacts:
    found = next((each for each in facts if each.id == run_id), None)
    if found is None:
        raise ModelNotFound(f'There is no Run and no file "{run_id}".', "mcp-core runs lists those there are.")
    return found
