"""Helpers of the decision tests: a Run without a measurement, numbered; empty stores on either database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mcp_core import hardware
from mcp_core.presets import bundled
from mcp_core.results import RequestRecord, Run
from mcp_core.workload import short_chat
from tests import postgres_server as postgres

MACHINE = hardware.detect()


def make_run(number: int = 0) -> Run:
    """A failed Run; a higher number is later."""
    return Run(
        id=f"run-{number:03}",
        created=datetime(2026, 11, 1, tzinfo=UTC) + timedelta(seconds=number),
        recipe=bundled(),
        workload=short_chat(),
        hardware=MACHINE,
        status="failed",
    )


@pytest.fixture
def run_number() -> Callable[[int], Run]:
    return make_run


@pytest.fixture
def records() -> tuple[RequestRecord, ...]:
    return tuple(
        RequestRecord(index=index, status="ok", sent_ms=0.5 * index, chunk_ms=(1.5, 2.25), chunk_tokens=(1, 1))
        for index in range(12)
    )


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """One for all tests of this process; skipped where PostgreSQL is not installed."""
    programs = postgres.binaries()
    if programs is None:
        pytest.skip(postgres.MISSING)
    with postgres.running(programs) as server:
        yield server


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'runs.sqlite'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Address of an empty store, in turn on each database."""
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite_url")
    return request.getfixturevalue("postgres_server").fresh_url()
