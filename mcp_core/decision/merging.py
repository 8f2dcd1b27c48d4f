"""Runs carried from one store to another: written to a file of JSON lines, read from one or from another store.

A Run that is already there stays as it is. This file does not know where the Runs were made.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mcp_core.decision.store import Store
from mcp_core.errors import InputError, McpError, ModelNotFound
from mcp_core.recipe import validation_message
from mcp_core.results import RequestRecord, Run

__all__ = ["Merged", "merge", "write_runs"]

_SQLITE = b"SQLite format 3\x00"
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Merged:
    """How many Runs were added, and how many were there already."""

    added: int
    known: int


def write_runs(store: Store, run_ids: Iterable[str], path: Path) -> int:
    """Write these Runs with their request records and telemetry, a line of JSON each; how many there were.

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
    """Add the Runs of a file: a results store (SQLite), or JSON lines as ``write_runs`` makes them.

    Raises ModelNotFound, and InputError naming the line that is none; what came before it has been added.
    """
    try:
        with path.open("rb") as file:
            is_sqlite = file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise ModelNotFound(f"{path} cannot be read: {error.strerror}.", "Give a sweep's result file.") from error
    added = known = 0
    for run, records, telemetry in _of_store(path) if is_sqlite else _of_lines(path):
        if store.get(run.id) is not None:
            known += 1
        else:
            store.add(run, records, telemetry)
            added += 1
    return Merged(added, known)


_Entry = tuple[Run, tuple[RequestRecord, ...], Any]


def _document(store: Store, run: Run) -> dict[str, Any]:
    return {
        "run": run.model_dump(mode="json"),
        "records": [record.model_dump(mode="json") for record in store.records(run.id)],
        "telemetry": store.telemetry(run.id),
    }


def _of_lines(path: Path) -> Iterator[_Entry]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _entry(line, f"{path}, line {number}")


def _entry(line: str, where: str) -> _Entry:
    hint = "Give a file that mcp-core sweep --out wrote, or another results store."
    try:
        document = json.loads(line)
        if not isinstance(document, dict) or not isinstance(document.get("records", []), list):
            raise InputError(f"{where}: this is no stored Run.", hint)
        records = tuple(map(RequestRecord.model_validate, document.get("records", ())))
        return Run.model_validate(document.get("run")), records, document.get("telemetry")
    except ValidationError as error:
        raise InputError(f"{where}: {validation_message(error)}.", hint) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: this is not JSON.", hint) from error


def _of_store(path: Path) -> Iterator[_Entry]:
    with _copy_of(path) as copy, Store(f"sqlite:///{copy}") as other:
        for offset in range(0, other.count(), _PAGE):
            for run in other.list(_PAGE, offset):
                yield run, other.records(run.id), other.telemetry(run.id)


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
