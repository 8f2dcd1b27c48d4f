"""``mcp-core runs``: the stored Runs, newest first; ``runs show ID``, ``runs delete ID``, ``runs merge FILE``."""

from __future__ import annotations

import argparse
from pathlib import Path

from mcp_core.commands.arguments import add_json, whole_number
from mcp_core.commands.output import emit, note, say, table
from mcp_core.commands.run_table import HEADING, row_of, show
from mcp_core.decision.merging import merge
from mcp_core.decision.store import Store
from mcp_core.errors import ModelNotFound

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--limit, --json, show ID, delete ID, merge FILE."""
    parser.add_argument("--limit", type=whole_number(1), default=20, help="at most so many; 20 by default")
    add_json(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    for action, about in (("show", "one Run in full"), ("delete", "forget one Run and its request records")):
        each = actions.add_parser(action, help=about)
        each.add_argument("id", metavar="ID", help="as the list shows it")
        if action == "show":
            each.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON document")
    merging = actions.add_parser("merge", help="add the Runs of a sweep's result file, or of another results store")
    merging.add_argument("file", metavar="FILE", type=Path, help="JSON lines, or SQLite")


def run(options: argparse.Namespace) -> int:
    """List, show, delete or merge. Raises StoreError, ModelNotFound, InputError for a bad file."""
    with Store() as store:
        if options.action == "show":
            _show(store, options.id, as_json=options.json)
        elif options.action == "delete":
            if not store.delete(options.id):
                raise _unknown(options.id)
            note(f"deleted {options.id}")
        elif options.action == "merge":
            merged = merge(store, options.file)
            note(f"{merged.added} Runs added, {merged.known} were there already")
        else:
            _list(store, options.limit, as_json=options.json)
    return 0


def _show(store: Store, run_id: str, *, as_json: bool) -> None:
    found = store.get(run_id)
    if found is None:
        raise _unknown(run_id)
    if as_json:
        emit(found.model_dump(mode="json"))
    else:
        show(found)


def _list(store: Store, limit: int, *, as_json: bool) -> None:
    found = store.list(limit)
    if as_json:
        emit([each.model_dump(mode="json") for each in found])
    elif not found:
        say("No Run is stored yet. Make one: mcp-core bench bundled short-chat")
    else:
        table([HEADING, *(row_of(each) for each in found)])
        if store.count() > len(found):
            note(f"{len(found)} of {store.count()} Runs; --limit shows more")


def _unknown(run_id: str) -> ModelNotFound:
    return ModelNotFound(f'There is no Run "{run_id}".', "mcp-core runs lists those there are.")
