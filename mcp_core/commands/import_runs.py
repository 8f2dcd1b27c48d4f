"""``mcp-core import FILE…``: other tools' result files into the store, with their own evidence level."""

from __future__ import annotations

import argparse
from pathlib import Path

from mcp_core.commands.arguments import add_json
from mcp_core.commands.output import emit, note, table
from mcp_core.commands.run_table import HEADING, row_of
from mcp_core.decision.importers import FORMATS, read_file
from mcp_core.decision.store import Store

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE…, --json."""
    names = ", ".join(each.tool for each in FORMATS)
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help=f"JSON or JSON lines of {names}")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Read every file before anything is stored. Raises InputError, ModelNotFound for a bad file, StoreError."""
    found = [each for path in options.files for each in read_file(path)]
    with Store() as store:
        known = sum(store.get(each.id) is not None for each, _ in found)
        for each, records in found:
            store.add(each, records)
    if options.json:
        emit([each.model_dump(mode="json") for each, _ in found])
        return 0
    table([HEADING, *(row_of(each) for each, _ in found)])
    note(f"{len(found) - known} Runs imported, {known} were there already")
    return 0
