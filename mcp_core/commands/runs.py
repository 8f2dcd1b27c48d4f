"""``mcp-core runs``: the stored Runs, newest first; show, delete, tag, untag, note; ``runs merge FILE…``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mcp_core.commands.arguments import whole_number
from mcp_core.commands.output import emit, note, say, table
from mcp_core.commands.run_table import HEADING, remark_lines, row_of, show
from mcp_core.decision.merging import merge
from mcp_core.decision.remarks import Remarks
from mcp_core.decision.staleness import stale_runs
from mcp_core.decision.store import Store
from mcp_core.errors import InputError, ModelNotFound
from mcp_core.results import Run

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--limit, --tag, --json, list, show ID, delete ID, tag ID TAG…, untag ID TAG…, note ID TEXT, merge FILE…."""
    _add_list_arguments(parser)
    parser.set_defaults(limit=20, tag=None, json=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    _add_list_arguments(actions.add_parser("list", help="those stored, newest first; so without an ACTION"))
    for action, about in (("show", "one Run in full"), ("delete", "delete one Run and its request records")):
        each = actions.add_parser(action, help=about, description=f"{about.capitalize()}.")
        each.add_argument("id", metavar="ID", help="as the list shows it")
        if action == "show":
            each.add_argument(
                "--json", action="store_true", default=argparse.SUPPRESS, help="answer with one JSON document"
            )
    for action, about in (("tag", "give a Run tags"), ("untag", "take tags from a Run")):
        each = actions.add_parser(action, help=about, description=f"{about.capitalize()}.")
        each.add_argument("id", metavar="ID", help="as the list shows it")
        each.add_argument("tags", metavar="TAG", nargs="+", help="up to 40 letters without a comma")
    noting = actions.add_parser("note", help="write a note to a Run, in place of the one it has")
    noting.add_argument("id", metavar="ID", help="as the list shows it")
    noting.add_argument("text", metavar="TEXT", help='"" takes it away')
    merging = actions.add_parser(
        "merge", help="add the Runs of what sweep --out or bench --out wrote, or of another store"
    )
    merging.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="what sweep --out (JSON lines) or bench --out (a Run) wrote, or a results store (SQLite)",
    )


def _add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """Before and after the action: without defaults, so that neither undoes the other."""
    unset = argparse.SUPPRESS
    parser.add_argument(
        "--limit", type=whole_number(1), default=unset, metavar="N", help="list so many at most; default: 20"
    )
    parser.add_argument("--tag", default=unset, help="list those that have this tag")
    parser.add_argument("--json", action="store_true", default=unset, help="answer with one JSON document")


def run(options: argparse.Namespace) -> int:
    """Do it. Exit code 1 where some Runs of a file could not be merged.

    Raises StoreError, ModelNotFound for an unknown Run, InputError for a bad file, tag or note.
    """
    with Store() as store:
        if options.action == "show":
            _show(store, options.id, as_json=options.json)
        elif options.action == "delete":
            if not store.delete(options.id):
                raise _unknown(options.id)
            note(f"deleted {options.id}")
        elif options.action == "merge":
            several = len(options.files) > 1
            return max(_merge(store, path, f"{path}: " if several else "") for path in options.files)
        elif options.action in _CHANGES:
            changed = store.remark(options.id, partial(_CHANGES[options.action], options))
            if changed is None:
                raise _unknown(options.id)
            note(f"{options.id}: {'; '.join(remark_lines(changed)) or 'no tags, no note'}")
        else:
            _list(store, options.limit, options.tag, as_json=options.json)
    return 0


_CHANGES: dict[str, Callable[[argparse.Namespace, Remarks], Remarks]] = {
    "tag": lambda options, found: found.with_tags((*found.tags, *options.tags)),
    "untag": lambda options, found: found.with_tags(set(found.tags) - set(Remarks().with_tags(options.tags).tags)),
    "note": lambda options, found: found.with_note(options.text),
}


def _merge(store: Store, path: Path, of: str) -> int:
    merged = merge(store, path)
    if not merged.added and not merged.known:
        raise InputError(f"{path} holds no Run.", "Give a file that mcp-core sweep --out wrote, or another store.")
    note(f"{of}{merged.added} Runs added, {merged.known} were there already")
    for each in merged.unreadable:
        note(f"{of}left out: {each.what}: {each.why}")
    return 1 if merged.unreadable else 0


def _show(store: Store, run_id: str, *, as_json: bool) -> None:
    found = store.get(run_id)
    if found is None:
        raise _unknown(run_id)
    if as_json:
        emit(found.model_dump(mode="json"))
    else:
        show(found)
        for line in remark_lines(store.remarks_of(run_id)):
            say(line)
        if stale := stale_runs(store.facts()).get(run_id):
            say(f"stale: {stale}")


def _list(store: Store, limit: int, tag: str | None, *, as_json: bool) -> None:
    found, total = _newest(store, limit, tag)
    if as_json:
        emit([each.model_dump(mode="json") for each in found])
    elif not found:
        say("No Run has this tag." if tag else "No Run is stored yet. Make one: mcp-core bench bundled short-chat")
    else:
        remarks, stale = store.remarks(), stale_runs(store.facts())
        tags = {run_id: ", ".join(each.tags) for run_id, each in remarks.items()}
        table([HEADING, *(row_of(each, tags.get(each.id, ""), stale=each.id in stale) for each in found)])
        if total > len(found):
            note(f"{len(found)} of {total} Runs; --limit shows more")


def _newest(store: Store, limit: int, tag: str | None) -> tuple[Sequence[Run], int]:
    """So many, of those that have this tag, and how many there are."""
    if tag is None:
        return store.list(limit), store.count()
    wanted, remarks = Remarks().with_tags([tag]).tags[0], store.remarks()
    ids = [each for each in store.ids() if each in remarks and wanted in remarks[each].tags]
    return [run for run in map(store.get, ids[:limit]) if run is not None], len(ids)


def _unknown(run_id: str) -> ModelNotFound:
    return ModelNotFound(f'There is no Run "{run_id}".', "mcp-core runs lists those there are.")
