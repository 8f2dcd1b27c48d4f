"""``mcp-core models``: the models kept on this machine, with their sizes; ``models delete ID`` removes one."""

from __future__ import annotations

import argparse

from mcp_core.commands.arguments import add_json, add_listing
from mcp_core.commands.output import emit, note, say, size, table
from mcp_core.models import prepared

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--json, list, and delete ID."""
    add_json(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    add_listing(actions)
    delete = actions.add_parser("delete", help="remove one from the disk", description="Remove one from the disk.")
    delete.add_argument("id", metavar="ID", help="as the list shows it")


def run(options: argparse.Namespace) -> int:
    """List or delete. Raises ModelNotFound."""
    if options.action == "delete":
        prepared.delete(options.id)
        note(f"deleted {options.id}")
        return 0
    found = prepared.list_models()
    if options.json:
        emit([_document(model) for model in found])
    elif not found:
        say("No model is kept on this machine yet.")
    else:
        rows = [("ID", "MODEL", "KIND", "SIZE", "SINCE")]
        rows += [
            (model.id, model.title, model.kind, size(model.bytes), f"{model.created:%Y-%m-%d %H:%M}")
            for model in found
        ]
        table(rows)
    return 0


def _document(model: prepared.PreparedModel) -> dict[str, str | int]:
    return {
        "id": model.id,
        "title": model.title,
        "kind": model.kind,
        "path": str(model.path),
        "bytes": model.bytes,
        "created": model.created.isoformat(),
    }
