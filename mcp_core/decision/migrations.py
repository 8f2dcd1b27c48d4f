"""Migrations of the results store: numbered functions, applied in order, never edited once shipped.

Each one states its tables in full, so that a later change of ``store.py`` cannot alter what an old file got.
This file does not know what the columns mean (``store.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from mcp_core.errors import StoreError

__all__ = ["MIGRATIONS", "WRITING", "migrate", "schema_version"]

# Execution options of a connection that will write (what they do: ``database.py``).
WRITING = {"mcp_writes": True}

Migration = Callable[[sa.Connection], None]

_versions = sa.Table(
    "schema_version",
    sa.MetaData(),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("applied", sa.String(40), nullable=False),
)


def _runs_and_records(connection: sa.Connection) -> None:
    tables = sa.MetaData()
    sa.Table(
        "runs",
        tables,
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("created", sa.String(40), nullable=False, index=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("recipe_fingerprint", sa.String(64), nullable=False, index=True),
        sa.Column("load_key", sa.String(64), nullable=False),
        sa.Column("workload_fingerprint", sa.String(64), nullable=False, index=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    sa.Table(
        "request_records",
        tables,
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    tables.create_all(connection)


def _telemetry(connection: sa.Connection) -> None:
    tables = sa.MetaData()
    sa.Table(
        "telemetry",
        tables,
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
    )
    tables.create_all(connection)


def _fidelities(connection: sa.Connection) -> None:
    tables = sa.MetaData()
    sa.Table(
        "fidelities",
        tables,
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("created", sa.String(40), nullable=False, index=True),
        sa.Column("recipe_fingerprint", sa.String(64), nullable=False, index=True),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    sa.Table(
        "token_maps",
        tables,
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("document", sa.LargeBinary, nullable=False),
    )
    sa.Table(
        "noise_floors",
        tables,
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
    )
    tables.create_all(connection)


def _facts(connection: sa.Connection) -> None:
    tables = sa.MetaData()
    sa.Table(
        "run_facts",
        tables,
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("written", sa.String(40), nullable=False, index=True),
        sa.Column("created", sa.String(40), nullable=False, index=True),
        sa.Column("document", sa.Text, nullable=True),
    )
    sa.Table(
        "request_samples",
        tables,
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("document", sa.LargeBinary, nullable=False),
    )
    tables.create_all(connection)


def _sweep_tables(connection: sa.Connection) -> None:
    tables = sa.MetaData()
    sa.Table(
        "sweeps",
        tables,
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("created", sa.String(40), nullable=False, index=True),
        sa.Column("fingerprint", sa.String(64), nullable=False, index=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("device", sa.String(16), nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
    )
    sa.Table(
        "sweep_cells",
        tables,
        sa.Column("sweep_id", sa.String(64), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(16), nullable=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("failure", sa.Text, nullable=True),
    )
    sa.Table(
        "sweep_runs",
        tables,
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("sweep_id", sa.String(64), nullable=False, index=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("start", sa.Integer, nullable=False),
        sa.Column("final", sa.Integer, nullable=False),
    )
    tables.create_all(connection)


def _fact_texts(connection: sa.Connection) -> None:
    tables = sa.MetaData()
    sa.Table(
        "fact_texts",
        tables,
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
    )
    tables.create_all(connection)


def _run_remarks(connection: sa.Connection) -> None:
    tables = sa.MetaData()
    sa.Table(
        "run_remarks",
        tables,
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
    )
    tables.create_all(connection)


# Position + 1 is the version that the function brings a store to.
MIGRATIONS: tuple[Migration, ...] = (
    _runs_and_records,
    _telemetry,
    _fidelities,
    _facts,
    _sweep_tables,
    _fact_texts,
    _run_remarks,
)


def migrate(engine: sa.Engine, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the store to the newest version, in one transaction. Raises StoreError for a newer store."""
    with engine.connect() as connection:
        version = schema_version(connection)
    if version > len(migrations):
        raise StoreError(
            f"The results store has version {version}; this MCP knows versions up to {len(migrations)}.",
            "Update MCP, or point MCP_STORE_URL at another store.",
        )
    if version < len(migrations):
        _upgrade(engine, migrations)


def _upgrade(engine: sa.Engine, migrations: Sequence[Migration]) -> None:
    with engine.execution_options(**WRITING).begin() as connection:
        _versions.create(connection, checkfirst=True)
        version = schema_version(connection)  # read again: another process may have been faster
        for number, step in enumerate(migrations[version:], start=version + 1):
            step(connection)
            connection.execute(_versions.insert().values(version=number, applied=datetime.now(UTC).isoformat()))


def schema_version(connection: sa.Connection) -> int:
    """The version of the store behind this connection; 0 for an empty one."""
    if not sa.inspect(connection).has_table(_versions.name):
        return 0
    return connection.execute(sa.select(sa.func.max(_versions.c.version))).scalar() or 0
