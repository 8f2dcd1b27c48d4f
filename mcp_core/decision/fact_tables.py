"""The store's tables of facts and samples: derived from Runs and their records, made anew when outdated.

This file does not know when they are read or written (``store.py``), or what a fact means (``facts.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from mcp_core.decision.facts import VERSION, RunFacts
from mcp_core.evaluation.request_samples import RequestSamples
from mcp_core.results import RequestRecord, Run

__all__ = ["DERIVED", "forget", "is_current", "keep", "keep_unreadable", "read_facts", "read_samples", "state"]

# Databases take so many values in one statement, and not many more.
_IDS_AT_ONCE = 10_000

_metadata = sa.MetaData()

_facts = sa.Table(
    "run_facts",
    _metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer),
    sa.Column("written", sa.String(40)),
    sa.Column("created", sa.String(40)),
    sa.Column("document", sa.Text),
)
_texts = sa.Table(
    "fact_texts",
    _metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("text", sa.Text),
)
_samples = sa.Table(
    "request_samples",
    _metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("document", sa.LargeBinary),
)
# By Run, deleted with it.
DERIVED = (_facts, _samples)


def keep(connection: sa.Connection, run: Run, records: Sequence[RequestRecord]) -> None:
    """Write the facts and samples of a Run that has none."""
    packed, texts = RunFacts.of(run).pack()
    created = run.created.astimezone(UTC).isoformat(timespec="microseconds")
    connection.execute(_facts.insert().values(_row(connection, run.id, created) | {"document": packed}))
    _keep_texts(connection, texts)
    if records:
        connection.execute(_samples.insert().values(run_id=run.id, document=RequestSamples.of(records).pack()))


def keep_unreadable(connection: sa.Connection, run_id: str) -> None:
    """A Run of a newer MCP, or a damaged one: it is not looked at again before the version moves on."""
    connection.execute(_facts.insert().values(_row(connection, run_id, "")))


def forget(connection: sa.Connection, run_id: str) -> None:
    """Delete what is derived from a Run; texts stay, others share them."""
    for table in DERIVED:
        connection.execute(table.delete().where(table.c.run_id == run_id))


def is_current(run_id: sa.Column[Any]) -> sa.ColumnElement[bool]:
    """Whether the Run of that column has facts of this version."""
    return sa.exists().where(_facts.c.run_id == run_id, _facts.c.version == VERSION)


def state(connection: sa.Connection) -> tuple[Any, ...]:
    """Another value whenever facts were written or deleted."""
    return tuple(connection.execute(sa.select(sa.func.count(), sa.func.max(_facts.c.written))).one())


def read_facts(connection: sa.Connection) -> tuple[RunFacts, ...]:
    """Every Run's, newest first. Those of another version, in a store that cannot be written, are left out."""
    newest = sa.select(_facts.c.document).order_by(_facts.c.created.desc(), _facts.c.run_id.desc())
    readable = sa.and_(_facts.c.version == VERSION, _facts.c.document.is_not(None))
    documents = connection.scalars(newest.where(readable)).all()
    texts = {row.key: row.text for row in connection.execute(sa.select(_texts))}
    return tuple(RunFacts.unpack(each, texts) for each in documents)


def read_samples(connection: sa.Connection, run_ids: Sequence[str]) -> dict[str, RequestSamples]:
    """By Run; one without request records is left out."""
    found: dict[str, RequestSamples] = {}
    for first in range(0, len(run_ids), _IDS_AT_ONCE):
        some = _samples.c.run_id.in_(run_ids[first : first + _IDS_AT_ONCE])
        for row in connection.execute(sa.select(_samples.c.run_id, _samples.c.document).where(some)):
            found[row.run_id] = RequestSamples.unpack(row.document)
    return found


def _row(connection: sa.Connection, run_id: str, created: str) -> dict[str, Any]:
    written = _later_than_all(connection).isoformat(timespec="microseconds")
    return {"run_id": run_id, "version": VERSION, "written": written, "created": created}


def _later_than_all(connection: sa.Connection) -> datetime:
    """Now, or just after what another host wrote whose clock is ahead: ``state`` tells by it that there is news."""
    now, last = datetime.now(UTC), connection.scalar(sa.select(sa.func.max(_facts.c.written)))
    return max(now, datetime.fromisoformat(last) + timedelta(microseconds=1)) if last else now


def _keep_texts(connection: sa.Connection, texts: dict[str, str]) -> None:
    known = set(connection.scalars(sa.select(_texts.c.key).where(_texts.c.key.in_(texts))))
    for key in texts.keys() - known:
        # Another process may be writing the same text: then it is there.
        with contextlib.suppress(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(_texts.insert().values(key=key, text=texts[key]))
