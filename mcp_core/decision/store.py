"""Store: Runs with records and telemetry, Fidelities with token maps, in SQLite or PostgreSQL.

One short transaction a Run; several processes may write at once. This file does not know what a Run or a Fidelity
means, and it interprets no telemetry.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from pydantic import ValidationError

from mcp_core import paths
from mcp_core.decision import fact_tables
from mcp_core.decision.database import address_of, first_line, open_engine, told
from mcp_core.decision.facts import RunFacts
from mcp_core.decision.migrations import WRITING, migrate
from mcp_core.decision.remarks import Remarks
from mcp_core.errors import StoreError
from mcp_core.evaluation.request_samples import RequestSamples
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.recipe import Recipe, validation_message
from mcp_core.results import Fidelity, Mean, RequestRecord, Run, StoredFidelity, now
from mcp_core.token_map import TokenMap

__all__ = ["Store"]

T = TypeVar("T")
D = TypeVar("D")

# Runs of which facts are made in one transaction.
_FACTS_AT_ONCE = 200

_metadata = sa.MetaData()

_runs = sa.Table(
    "runs",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("created", sa.String(40)),
    sa.Column("status", sa.String(16)),
    sa.Column("recipe_fingerprint", sa.String(64)),
    sa.Column("load_key", sa.String(64)),
    sa.Column("workload_fingerprint", sa.String(64)),
    sa.Column("title", sa.Text),
    sa.Column("document", sa.Text),
)
_records = sa.Table(
    "request_records",
    _metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("document", sa.Text),
)
_telemetry = sa.Table(
    "telemetry",
    _metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("document", sa.Text),
)
_remarks = sa.Table(
    "run_remarks",
    _metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("document", sa.Text),
)
_fidelities = sa.Table(
    "fidelities",
    _metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("created", sa.String(40)),
    sa.Column("recipe_fingerprint", sa.String(64)),
    sa.Column("recipe", sa.Text),
    sa.Column("document", sa.Text),
)
_token_maps = sa.Table(
    "token_maps",
    _metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("document", sa.LargeBinary),
)
_noise_floors = sa.Table(
    "noise_floors",
    _metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("document", sa.Text),
)


class Store:
    """Runs that survive a restart. Thread-safe. Every method raises StoreError when the store cannot be used."""

    def __init__(self, url: str | None = None) -> None:
        """Open (and create or upgrade) the store at this SQLAlchemy URL; None is ``paths.store_url()``."""
        self._engine = open_engine(url or paths.store_url())
        self._writer = self._engine.execution_options(**WRITING)
        self._kept_facts: tuple[tuple[Any, ...], tuple[RunFacts, ...]] | None = None
        try:
            with told(self._engine):
                migrate(self._engine)
        except StoreError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Its URL, a password blotted out."""
        return address_of(self._engine)

    def close(self) -> None:
        """Close every connection; the Store can still be used and opens them again."""
        self._engine.dispose()

    def add(self, run: Run, records: Sequence[RequestRecord] = (), telemetry: Any = None) -> None:
        """Write one Run; one of the same id is replaced, its remarks stay. ``telemetry`` is any JSON value or None.

        When the store cannot be written, the Run goes to MCP_HOME/unsaved as JSON, and StoreError says so.
        """
        try:
            with self.writing() as connection:
                _forget(connection, run.id)
                connection.execute(_runs.insert().values(_row(run)))
                fact_tables.keep(connection, run, records)
                if records:
                    connection.execute(_records.insert(), _record_rows(run.id, records))
                if telemetry is not None:
                    row = {"run_id": run.id, "document": json.dumps(telemetry)}
                    connection.execute(_telemetry.insert().values(row))
        except StoreError as error:
            raise StoreError(f"{error.message} {_rescue(run, records)}", error.hint) from error

    def get(self, run_id: str) -> Run | None:
        """The Run of that id, or None."""
        with self.reading() as connection:
            document = connection.scalar(sa.select(_runs.c.document).where(_runs.c.id == run_id))
        return None if document is None else _parse(run_id, document, Run.model_validate_json)

    def list(self, limit: int = 100, offset: int = 0) -> tuple[Run, ...]:
        """Runs, newest first."""
        newest = sa.select(_runs.c.id, _runs.c.document).order_by(_runs.c.created.desc(), _runs.c.id.desc())
        with self.reading() as connection:
            rows = connection.execute(newest.limit(limit).offset(offset)).all()
        return tuple(_parse(run_id, document, Run.model_validate_json) for run_id, document in rows)

    def facts(self) -> tuple[RunFacts, ...]:
        """Every Run in a line, newest first; read again only when something was written since.

        Facts of Runs that an older MCP wrote are made first. A Run that cannot be read has none.
        """
        with contextlib.suppress(StoreError):  # what cannot be written can still be read
            self._make_facts()
        with self.reading() as connection:
            state = fact_tables.state(connection)
            if self._kept_facts is None or self._kept_facts[0] != state:
                self._kept_facts = (state, fact_tables.read_facts(connection))
            return self._kept_facts[1]

    def samples(self, run_ids: Sequence[str]) -> dict[str, RequestSamples]:
        """Request samples by Run; one that has no request records is left out."""
        with self.reading() as connection:
            return fact_tables.read_samples(connection, run_ids)

    def _make_facts(self) -> None:
        """Facts and samples of Runs that have none, or those of an older version."""
        # Without documents, so that the index alone is read.
        lacking = sa.select(_runs.c.id).where(~fact_tables.is_current(_runs.c.id)).limit(_FACTS_AT_ONCE)
        while True:
            with self.reading() as connection:
                ids = connection.scalars(lacking).all()
                rows = connection.execute(sa.select(_runs.c.id, _runs.c.document).where(_runs.c.id.in_(ids))).all()
            if not rows:
                return
            found = [
                (run_id, _readable(run_id, document, Run.model_validate_json), self.records(run_id))
                for run_id, document in rows
            ]
            with self.writing() as connection:
                # One that was deleted meanwhile must not come back as facts without a Run.
                there = set(connection.scalars(sa.select(_runs.c.id).where(_runs.c.id.in_(ids))))
                for run_id, run, records in (each for each in found if each[0] in there):
                    fact_tables.forget(connection, run_id)
                    if run is None:
                        fact_tables.keep_unreadable(connection, run_id)
                    else:
                        fact_tables.keep(connection, run, records)

    def ids(self) -> tuple[str, ...]:
        """Of every Run, also of those that cannot be read; newest first."""
        with self.reading() as connection:
            return tuple(
                connection.scalars(sa.select(_runs.c.id).order_by(_runs.c.created.desc(), _runs.c.id.desc()))
            )

    def count(self) -> int:
        """How many Runs there are."""
        with self.reading() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(_runs)) or 0

    def records(self, run_id: str) -> tuple[RequestRecord, ...]:
        """The request records of a Run in the order in which they were given; empty when there are none."""
        query = sa.select(_records.c.document).where(_records.c.run_id == run_id).order_by(_records.c.position)
        with self.reading() as connection:
            documents = connection.scalars(query).all()
        return tuple(_parse(run_id, each, RequestRecord.model_validate_json) for each in documents)

    def telemetry(self, run_id: str) -> Any:
        """The telemetry document of a Run, or None."""
        with self.reading() as connection:
            document = connection.scalar(sa.select(_telemetry.c.document).where(_telemetry.c.run_id == run_id))
        return None if document is None else _parse(run_id, document, json.loads)

    def run_telemetry(self, run_id: str) -> RunTelemetry | None:
        """The same, of a Run that ``evaluation/benchmark.py`` made; None when it kept none."""
        document = self.telemetry(run_id)
        return None if document is None else _parse(run_id, document, RunTelemetry.model_validate)

    def delete(self, run_id: str) -> bool:
        """Delete a Run with its records, telemetry and remarks; False when there was none."""
        with self.writing() as connection:
            connection.execute(_remarks.delete().where(_remarks.c.run_id == run_id))
            return _forget(connection, run_id)

    def remarks(self) -> dict[str, Remarks]:
        """Tags and notes by Run; left out are Runs that have none, or some that cannot be read."""
        with self.reading() as connection:
            rows = connection.execute(sa.select(_remarks)).all()
        found = ((run_id, _readable(run_id, document, Remarks.model_validate_json)) for run_id, document in rows)
        return {run_id: remarks for run_id, remarks in found if remarks is not None}

    def remarks_of(self, run_id: str) -> Remarks:
        """Those of one Run; empty where there are none."""
        with self.reading() as connection:
            return _remarks_of(connection, run_id)

    def remark(self, run_id: str, change: Callable[[Remarks], Remarks]) -> Remarks | None:
        """Replace a Run's tags and note by what ``change`` makes of them; None where there is no such Run."""
        with self.writing() as connection:
            if connection.scalar(sa.select(_runs.c.id).where(_runs.c.id == run_id)) is None:
                return None
            changed = change(_remarks_of(connection, run_id))
            connection.execute(_remarks.delete().where(_remarks.c.run_id == run_id))
            if changed != Remarks():
                connection.execute(_remarks.insert().values(run_id=run_id, document=changed.model_dump_json()))
            return changed

    def add_fidelity(self, recipe: Recipe, fidelity: Fidelity, token_map: TokenMap | None = None) -> None:
        """Write what came out of judging ``recipe``; one of the same key is replaced, with its token map."""
        assert fidelity.key is not None, "what is stored has been keyed"
        row = {
            "key": fidelity.key,
            "created": now().isoformat(timespec="microseconds"),
            "recipe_fingerprint": recipe.fingerprint,
            "recipe": recipe.model_dump_json(),
            "document": fidelity.model_dump_json(),
        }
        with self.writing() as connection:
            for table in (_fidelities, _token_maps):
                connection.execute(table.delete().where(table.c.key == fidelity.key))
            connection.execute(_fidelities.insert().values(row))
            if token_map is not None:
                packed = zlib.compress(token_map.model_dump_json().encode())
                connection.execute(_token_maps.insert().values(key=fidelity.key, document=packed))

    def fidelity(self, key: str) -> StoredFidelity | None:
        """The Fidelity of that key with its Recipe, or None."""
        return next(self._stored(sa.select(_fidelities).where(_fidelities.c.key == key)), None)

    def fidelities(self, limit: int = 100) -> tuple[StoredFidelity, ...]:
        """Fidelities with their Recipes, newest first."""
        newest = sa.select(_fidelities).order_by(_fidelities.c.created.desc(), _fidelities.c.key)
        return tuple(self._stored(newest.limit(limit)))

    def token_map(self, key: str) -> TokenMap | None:
        """The token map of the Fidelity of that key, or None."""
        with self.reading() as connection:
            packed = connection.scalar(sa.select(_token_maps.c.document).where(_token_maps.c.key == key))
        if packed is None:
            return None
        return _parse(key, packed, lambda each: TokenMap.model_validate_json(zlib.decompress(each)), _JUDGED)

    def keep_noise_floor(self, key: str, floor: Mean) -> None:
        """Write a reference's distance to itself; one of the same key is replaced."""
        with self.writing() as connection:
            connection.execute(_noise_floors.delete().where(_noise_floors.c.key == key))
            connection.execute(_noise_floors.insert().values(key=key, document=floor.model_dump_json()))

    def noise_floor(self, key: str) -> Mean | None:
        """The noise floor of that key, or None."""
        with self.reading() as connection:
            document = connection.scalar(sa.select(_noise_floors.c.document).where(_noise_floors.c.key == key))
        return None if document is None else _parse(key, document, Mean.model_validate_json, _JUDGED)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection, also for whoever keeps tables of its own in this store, such as ``sweeps.py``."""
        with told(self._engine), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """The same in one transaction that writes."""
        with told(self._engine), self._writer.begin() as connection:
            yield connection

    def _stored(self, query: sa.Select[Any]) -> Iterator[StoredFidelity]:
        with self.reading() as connection:
            rows = connection.execute(query).mappings().all()
        for row in rows:
            yield StoredFidelity(
                created=datetime.fromisoformat(row["created"]),
                recipe=Recipe.from_json(row["recipe"]),
                fidelity=_parse(row["key"], row["document"], Fidelity.model_validate_json, _JUDGED),
            )


def _readable(run_id: str, document: str, read: Callable[[str], T]) -> T | None:
    """None for what a newer MCP wrote or is damaged, which lists then leave out."""
    try:
        return _parse(run_id, document, read)
    except StoreError:
        return None


def _forget(connection: sa.Connection, run_id: str) -> bool:
    for table in (_records, _telemetry, *fact_tables.DERIVED):
        connection.execute(table.delete().where(table.c.run_id == run_id))
    return connection.execute(_runs.delete().where(_runs.c.id == run_id)).rowcount > 0


def _remarks_of(connection: sa.Connection, run_id: str) -> Remarks:
    document = connection.scalar(sa.select(_remarks.c.document).where(_remarks.c.run_id == run_id))
    return Remarks() if document is None else _parse(run_id, document, Remarks.model_validate_json)


def _row(run: Run) -> dict[str, str]:
    return {
        "id": run.id,
        "created": run.created.astimezone(UTC).isoformat(timespec="microseconds"),
        "status": run.status,
        "recipe_fingerprint": run.recipe.fingerprint,
        "load_key": run.recipe.load_key,
        "workload_fingerprint": run.workload.fingerprint,
        "title": f"{run.recipe.model.id} · {run.workload.name}",
        "document": run.model_dump_json(),
    }


def _record_rows(run_id: str, records: Sequence[RequestRecord]) -> list[dict[str, Any]]:
    return [
        {"run_id": run_id, "position": position, "document": record.model_dump_json()}
        for position, record in enumerate(records)
    ]


_RUN = ("Run", "delete it with: mcp-core runs delete {key}")
_JUDGED = ("Fidelity", "measure it again with: mcp-core fidelity RECIPE --fresh")


def _parse(key: str, document: D, read: Callable[[D], T], noun_and_help: tuple[str, str] = _RUN) -> T:
    noun, instead = noun_and_help
    try:
        return read(document)
    except (ValidationError, json.JSONDecodeError, zlib.error) as error:
        why = validation_message(error) if isinstance(error, ValidationError) else first_line(error)
        raise StoreError(
            f"{noun} {key} in the store cannot be read: {why}.",
            f"It may come from a newer MCP; {instead.format(key=key)}",
        ) from error


def _rescue(run: Run, records: Sequence[RequestRecord]) -> str:
    """Write the Run beside the store, and say where it is."""
    path = Path("MCP_HOME/unsaved")
    try:
        path = paths.home("unsaved") / f"{run.id}.json"
        path.write_text(run.model_dump_json(indent=2) + "\n")
        lines = (record.model_dump_json() + "\n" for record in records)
        path.with_suffix(".records.jsonl").write_text("".join(lines))
    except (OSError, StoreError) as error:
        return f"The Run could not be written to {path} either: {error}"
    return f"The Run was written to {path} instead."
