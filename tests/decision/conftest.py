"""Helpers of the decision tests: a Run without a measurement, numbered."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from mcp_core import hardware
from mcp_core.presets import bundled
from mcp_core.results import RequestRecord, Run
from mcp_core.workload import short_chat

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
