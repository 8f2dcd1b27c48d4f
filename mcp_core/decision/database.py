"""An address → an SQLAlchemy engine of SQLite or PostgreSQL, set up so that several processes write; its errors in
our words, without the password.

This file does not know which tables there are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from mcp_core.decision.migrations import WRITING
from mcp_core.errors import StoreError

__all__ = ["address_of", "first_line", "open_engine", "told"]

BUSY_TIMEOUT_MS = 10_000
CONNECT_TIMEOUT_S = 10
# What every process of MCP locks while it writes; any number, but the same one.
_WRITERS = 0x4D43_5053
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_ADDRESS = (
    "MCP_STORE_URL is an SQLAlchemy URL: sqlite:////path/to/runs.sqlite or "
    "postgresql://USER:PASSWORD@HOST/DATABASE (special characters of the password as %XX)."
)


def open_engine(url: str) -> sa.Engine:
    """An engine of the database at this URL; nothing has been connected yet. Raises StoreError."""
    address = _parsed(url)
    if address.drivername == "sqlite":
        engine = sa.create_engine(address)
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        # Pre-ping: a server that was restarted meanwhile is met with a new connection, not with an error.
        patience = {"connect_timeout": address.query.get("connect_timeout", CONNECT_TIMEOUT_S)}
        engine = sa.create_engine(address, pool_pre_ping=True, connect_args=patience)
    except ImportError as error:
        raise StoreError(
            "The results store cannot be opened: PostgreSQL needs psycopg, which is not installed.",
            "In this program's folder: .venv/bin/pip install -e '.[postgres]'",
        ) from error
    sa.event.listen(engine, "begin", _begin_postgresql)
    return engine


def _parsed(url: str) -> sa.URL:
    """What cannot be read is never repeated: a part of it may be the password."""
    try:
        address = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise StoreError("The results store cannot be opened: its address is no URL.", _ADDRESS) from None
    if address.drivername not in _DRIVERS:
        known = "it can be SQLite or PostgreSQL (psycopg)"
        raise StoreError(f"The results store cannot be opened: {known}, not {address.drivername}.", _ADDRESS)
    if "@" in (address.host or ""):
        raise StoreError("The results store cannot be opened: its address has more than one @.", _ADDRESS)
    return address.set(drivername=_DRIVERS[address.drivername])


def address_of(engine: sa.Engine) -> str:
    """Its URL with the password blotted out; without the query, which may hold one too."""
    return engine.url.set(query={}).render_as_string(hide_password=True)


@contextlib.contextmanager
def told(engine: sa.Engine) -> Iterator[None]:
    """Errors of this database leave as StoreError: cause in one line, and what to do."""
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        cause = first_line(error.orig if isinstance(error, sa.exc.DBAPIError) else error)
        store = f"The results store {address_of(engine)}"
        raise StoreError(f"{store} cannot be used: {cause}.", _hint(cause)) from error


def first_line(error: BaseException | None) -> str:
    """An error in one line, whatever it is."""
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _configure_sqlite(dbapi_connection: Any, _record: Any) -> None:
    # The driver's own transactions leave DDL outside of them; _begin_sqlite starts ours.
    dbapi_connection.isolation_level = None
    dbapi_connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    # A store on read-only media can still be read, in the journal mode that it has.
    with contextlib.suppress(dbapi_connection.OperationalError):
        dbapi_connection.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads before it writes fails at once, without waiting, when another one wrote between;
    # IMMEDIATE waits at the beginning instead.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")


def _begin_postgresql(connection: sa.Connection) -> None:
    # One writer at a time, as on SQLite: what a transaction reads before it writes (is the row there? which version
    # has the store?) is still so when it writes. It ends with the transaction, also when this process is killed.
    if _writes(connection):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")


def _writes(connection: sa.Connection) -> bool:
    return connection.get_execution_options().items() >= WRITING.items()


def _hint(cause: str) -> str:
    for words, hint in _HINTS.items():
        if words in cause:
            return hint
    return "Check MCP_STORE_URL and MCP_HOME; mcp-core doctor shows where the store is."


_SERVER = "Check that the server runs, and host and port in MCP_STORE_URL."
_HINTS = {
    "not a database": "The file is not a results store: move it away, or point MCP_STORE_URL elsewhere.",
    "malformed": "The file is damaged: move it away, or restore a backup.",
    "readonly": "Make the file and its folder writable, or point MCP_STORE_URL elsewhere.",
    "is full": "Free some disk space, or point MCP_STORE_URL at another disk.",
    "locked": "Another process holds the store; try again when it is done.",
    "unable to open": "Check that the folder exists and is writable, or point MCP_STORE_URL elsewhere.",
    "authentication failed": "Check user and password in MCP_STORE_URL; special characters are written as %XX.",
    "no password supplied": "Add the password to MCP_STORE_URL: postgresql://USER:PASSWORD@HOST/DATABASE.",
    'database "': "Create it with createdb, or correct the database in MCP_STORE_URL.",
    "permission denied": "Give this user a database of its own, or the right to create tables in this one.",
    "read-only": "The server or this user may only read: point MCP_STORE_URL at one that can be written.",
    "starting up": "The server is starting; try again in a moment.",
    "Connection refused": _SERVER,
    "resolve host": _SERVER,
    "timeout": _SERVER,
    "No such file": _SERVER,
    "connection is closed": "The server ended the connection; try again once it runs.",
    "terminating connection": "The server ended the connection; try again once it runs.",
    "invalid connection option": "What stands after ? in MCP_STORE_URL are libpq's connection options.",
}
