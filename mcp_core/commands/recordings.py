"""``mcp-core recordings``: when real requests came and how long they were; ``add FILE`` keeps one, to be replayed.

This file does not know how recordings are read or kept (``recordings.py``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcp_core import recordings
from mcp_core.commands.arguments import add_json, add_listing
from mcp_core.commands.output import emit, note, say, table
from mcp_core.errors import InputError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--json, list, and add FILE."""
    add_json(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    add_listing(actions)
    add = actions.add_parser(
        "add", help="keep a .jsonl or .csv file's requests", description="Keep a .jsonl or .csv file's requests."
    )
    add.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="rows have at_s, prompt_tokens and output_tokens, or Mooncake's or Azure's columns",
    )


def run(options: argparse.Namespace) -> int:
    """List or add. Raises InputError."""
    if options.action == "add":
        return _add(options)
    kept = recordings.list_recordings()
    if options.json:
        emit([_document(each) for each in kept])
        return 0
    if not kept:
        say("No recording is kept yet. Add one: mcp-core recordings add FILE")
        return 0
    rows = [("SHA-256", "NAME", "REQUESTS", "SECONDS")]
    rows += [(each.sha256, each.name, f"{len(each.requests):,}", f"{each.duration_s:,.1f}") for each in kept]
    table(rows)
    return 0


def _add(options: argparse.Namespace) -> int:
    try:
        content = options.file.read_bytes()
    except OSError as error:
        raise InputError(f"{options.file} cannot be read: {error.strerror}.", "Give a file.") from error
    added = recordings.add(options.file.name, content)
    if options.json:
        emit(_document(added))
        return 0
    say(added.sha256)
    note(f"kept {added.name}: {len(added.requests):,} requests in {added.duration_s:,.1f} s")
    note(f'replay it: --set \'workload.prompts={{"kind": "recording", "sha256": "{added.sha256}"}}\'')
    note("           --set workload.arrivals.kind=replay")
    return 0


def _document(kept: recordings.Recording) -> dict[str, str | int | float]:
    return {
        "sha256": kept.sha256,
        "name": kept.name,
        "requests": len(kept.requests),
        "duration_s": kept.duration_s,
    }
