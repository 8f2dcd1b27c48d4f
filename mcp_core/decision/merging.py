"""Runs carried from one store to another: written to a file of JSON lines, read from one, from a single Run's file
or from another store.

A Run that is already there stays as it is, but gets the tags of both and the newer note. This file does not know
where the Runs were made.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from mcp_core.decision.remarks import Remarks
from mcp_core.decision.store import Store
from mcp_core.errors import InputError, McpError, ModelNotFound, StoreError
from mcp_core.recipe import validation_message
from mcp_core.results import RequestRecord, Run

__all__ = ["Merged", "Unreadable", "merge", "write_runs"]

_SQLITE = b"SQLite format 3\x00"
_HINT = "Give a file that mcp-core sweep --out or bench --out wrote, or another results store."
# A single Run's document is read whole; none is as large.
_MOST_RUN_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A Run that was left out: its id, or the line where it stands; and why."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Merged:
    """How many Runs were added, how many were there already, and which could not be read."""

    added: int
    known: int
    unreadable: tuple[Unreadable, ...] = ()


def write_runs(store: Store, run_ids: Iterable[str], path: Path) -> int:
    """Write these Runs with records, telemetry and remarks, a line of JSON each; how many there were.

    The file is there whole or not at all. Raises McpError when it cannot be written.
    """
    fresh, count = path.with_name(f"{path.name}.new"), 0
    try:
        with fresh.open("w") as file:
            for run in filter(None, map(store.get, run_ids)):
                file.write(json.dumps(_document(store, run)) + "\n")
                count += 1
        fresh.replace(path)
    except OSError as error:
        raise McpError(f"{path} cannot be written: {error.strerror}.", "The Runs are in the store.") from error
    return count


def merge(store: Store, path: Path) -> Merged:
    """Add the Runs of a file: a results store (SQLite), JSON lines of ``write_runs``, or one Run's document.

    A Run that cannot be read keeps no other from being added. Raises ModelNotFound; InputError for a file of which
    nothing can be read, or which is none of these; StoreError where ours cannot be written.
    """
    try:
        with path.open("rb") as file:
            is_sqlite = file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise ModelNotFound(f"{path} cannot be read: {error.strerror}.", "Give a sweep's result file.") from error
    there, added, known, unreadable = set(store.ids()), 0, 0, []
    for entry in _of_store(path) if is_sqlite else _of_lines(path):
        if isinstance(entry, Unreadable):
            unreadable.append(entry)
            continue
        if entry.run.id in there:
            known += 1
        else:
            store.add(entry.run, entry.records, entry.telemetry)
            there.add(entry.run.id)
            added += 1
        if entry.remarks != Remarks():
            store.remark(entry.run.id, entry.remarks.merged)
    if unreadable and not added and not known:
        raise InputError(f"{path}, {unreadable[0].what}: {unreadable[0].why}.", _HINT)
    return Merged(added, known, tuple(unreadable))


class _Entry(NamedTuple):
    run: Run
    records: tuple[RequestRecord, ...]
    telemetry: Any
    remarks: Remarks


def _document(store: Store, run: Run) -> dict[str, Any]:
    return {
        "run": run.model_dump(mode="json"),
        "records": [record.model_dump(mode="json") for record in store.records(run.id)],
        "telemetry": store.telemetry(run.id),
        "remarks": store.remarks_of(run.id).model_dump(mode="json"),
    }


def _of_lines(path: Path) -> Iterator[_Entry | Unreadable]:
    whole = _whole(path)
    if whole is not None:
        yield _entry(whole, "the document")
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        numbered = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        for place, (number, line) in enumerate(numbered):
            try:
                document = json.loads(line)
            except (ValueError, RecursionError) as error:
                if place == 0:  # no such file at all: it may be of any size, and is not read on
                    raise InputError(f"{path}, line {number}: this is not JSON.", _HINT) from error
                yield Unreadable(f"line {number}", "this is not JSON")
            else:
                yield _entry(document, f"line {number}")


def _whole(path: Path) -> dict[str, Any] | None:
    """The document of a file that is one JSON object with a Recipe, as ``bench --out`` writes a Run; else None."""
    with path.open("rb") as file:
        if file.read(1) != b"{" or path.stat().st_size > _MOST_RUN_BYTES:
            return None
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return {"run": document} if isinstance(document, dict) and "recipe" in document else None


def _entry(document: Any, where: str) -> _Entry | Unreadable:
    if not isinstance(document, dict) or not isinstance(document.get("records", []), list):
        return Unreadable(where, "this is no stored Run")
    run = document.get("run")
    name = f" (Run {run['id'][:64]!r})" if isinstance(run, dict) and isinstance(run.get("id"), str) else ""
    try:
        return _Entry(
            Run.model_validate(run),
            tuple(map(RequestRecord.model_validate, document.get("records", ()))),
            document.get("telemetry"),
            Remarks.model_validate(document.get("remarks") or {}),
        )
    except ValidationError as error:
        return Unreadable(f"{where}{name}", validation_message(error))


def _of_store(path: Path) -> Iterator[_Entry | Unreadable]:
    with _copy_of(path) as copy, Store(f"sqlite:///{copy}") as other:
        for run_id in other.ids():
            try:
                run = other.get(run_id)
                assert run is not None, "nobody else has this copy"
                yield _Entry(run, other.records(run_id), other.telemetry(run_id), other.remarks_of(run_id))
            except StoreError as error:
                yield Unreadable(f"Run {run_id}", error.message.rstrip("."))


@contextmanager
def _copy_of(path: Path) -> Iterator[Path]:
    """Opening a store upgrades it, and somebody may be writing to this one: a copy is read."""
    with tempfile.TemporaryDirectory(prefix="mcp-merge-") as folder:
        copy = Path(folder) / "runs.sqlite"
        try:
            with (
                closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
                closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
        except sqlite3.Error as error:
            raise InputError(f"{path} is damaged: {error}.", "Take another copy of it.") from error
        yield copy
