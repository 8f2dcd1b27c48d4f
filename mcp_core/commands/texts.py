"""``mcp-core texts``: the texts for calibration and fidelity; ``add FILE`` keeps one, ``delete SHA`` removes one.

This file does not know how texts are read or kept (``texts.py``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcp_core import texts
from mcp_core.commands.arguments import add_json, add_listing
from mcp_core.commands.output import emit, note, say, table
from mcp_core.errors import InputError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--json, list, add FILE [--name], and delete SHA."""
    add_json(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    add_listing(actions)
    add = actions.add_parser(
        "add",
        help="keep a .txt, .jsonl or .csv file's text",
        description="Keep a .txt, .jsonl or .csv file's text.",
    )
    add.add_argument("file", metavar="FILE", type=Path, help='rows have "text", "prompt" or "messages"')
    add.add_argument("--name", help="what it is called here; else the file's name")
    delete = actions.add_parser("delete", help="remove one from the disk", description="Remove one from the disk.")
    delete.add_argument("sha256", metavar="SHA", help="as the list shows it")


def run(options: argparse.Namespace) -> int:
    """List, add or delete. Raises InputError."""
    if options.action == "delete":
        texts.delete(options.sha256)
        note(f"deleted {options.sha256}")
        return 0
    if options.action == "add":
        return _add(options)
    kept = texts.list_texts()
    if options.json:
        emit([_document(each) for each in kept])
        return 0
    builtin = texts.builtin_calibration()
    rows = [("SHA-256", "NAME", "PASSAGES", "CHARACTERS")]
    rows.append((texts.BUILTIN, builtin.name, f"{len(builtin.documents):,}", f"{builtin.characters:,}"))
    rows += [(each.sha256, each.name, f"{each.documents:,}", f"{each.characters:,}") for each in kept]
    table(rows)
    return 0


def _add(options: argparse.Namespace) -> int:
    try:
        content = options.file.read_bytes()
    except OSError as error:
        raise InputError(f"{options.file} cannot be read: {error.strerror}.", "Give a file.") from error
    added = texts.add(options.file.name, content, title=options.name)
    if options.json:
        emit({"sha256": added.sha256, "name": added.name, "documents": len(added.documents)})
    else:
        say(added.sha256)
        note(f"kept {added.name}: {len(added.documents):,} passages, {added.characters:,} characters")
    return 0


def _document(text: texts.StoredText) -> dict[str, str | int]:
    return {
        "sha256": text.sha256,
        "name": text.name,
        "documents": text.documents,
        "characters": text.characters,
        "added": text.added.isoformat(),
    }
