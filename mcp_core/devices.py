"""Who uses a device: leases in files under MCP_HOME/locks, shared for loaded workers, exclusive for measuring.

This file does not know what a worker or a job is: it keeps names, process ids and times. It has no say over
programs that do not ask.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psutil

from mcp_core import paths
from mcp_core.errors import Busy

__all__ = [
    "Holder",
    "Lease",
    "acquire",
    "app_instances",
    "holders",
    "is_alive",
    "leases_of",
    "process_started_s",
    "register_app",
    "wait_in_line",
    "waiters",
]

Purpose = Literal["chat", "measure", "waiting", "app"]

_APPS = "apps"
# purpose -> the purposes of others that keep it out
_IN_THE_WAY: dict[Purpose, tuple[Purpose, ...]] = {"chat": ("measure",), "measure": ("chat", "measure")}


@dataclass(frozen=True, slots=True)
class Holder:
    """One user of a device. Both times are seconds since 1970; ``label`` is shown to people."""

    id: str
    pid: int
    process_started_s: float
    purpose: Purpose
    label: str
    since_s: float

    def __str__(self) -> str:
        verb = {"chat": "loaded", "measure": "measuring", "waiting": "waiting", "app": "open"}[self.purpose]
        return f"{self.label} ({verb}, process {self.pid})"


@dataclass(frozen=True, slots=True)
class Lease:
    """A place in a device's list until ``release()``, the end of ``with``, or the end of this process."""

    device: str
    holder: Holder

    def release(self) -> None:
        """Give it back; again is harmless."""
        with _rows(self.device) as rows:
            rows[:] = [row for row in rows if row.id != self.holder.id]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def acquire(
    device: str, purpose: Literal["chat", "measure"], label: str, *, besides: Collection[str] = ()
) -> Lease:
    """Take a device: ``chat`` beside others, ``measure`` alone.

    ``besides`` are holder ids that do not count, the measured worker's own among them. Raises Busy naming
    the holders that are in the way.
    """
    with _rows(device) as rows:
        others = [row for row in rows if row.id not in besides]
        in_the_way = [row for row in others if row.purpose in _IN_THE_WAY[purpose]]
        if in_the_way:
            raise Busy(f"{device} is in use by {_names(in_the_way)}.", "Unload or cancel it, or wait.")
        return _enter(rows, device, purpose, label)


def wait_in_line(device: str, label: str) -> Lease:
    """Be listed as waiting for a device; the lease is the place in the line, not the device."""
    with _rows(device) as rows:
        return _enter(rows, device, "waiting", label)


def holders(device: str) -> tuple[Holder, ...]:
    """Who has the device now; processes that have ended are left out."""
    with _rows(device) as rows:
        return tuple(row for row in rows if row.purpose != "waiting")


def leases_of(pid: int) -> tuple[str, ...]:
    """Ids of the leases by which that process measures, on whatever device; a job asks for those of its parent."""
    return tuple(
        row.id
        for file in paths.home("locks").glob("*.json")
        for row in _read(file)
        if row.pid == pid and row.purpose == "measure"
    )


def waiters(device: str) -> tuple[Holder, ...]:
    """Who waits to measure on the device, longest first."""
    with _rows(device) as rows:
        return tuple(row for row in rows if row.purpose == "waiting")


def register_app(label: str) -> Lease:
    """List this process as an app on this MCP_HOME."""
    with _rows(_APPS) as rows:
        return _enter(rows, _APPS, "app", label)


def app_instances() -> tuple[Holder, ...]:
    """Every app that is open on this MCP_HOME, this one included; two of them share devices and store."""
    return holders(_APPS)


def process_started_s(pid: int) -> float | None:
    """When that process was started, seconds since 1970; None when there is none (a zombie is none)."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def is_alive(pid: int, started_s: float) -> bool:
    """Whether the process of that id is still the one that was started then: ids are used again."""
    found_s = process_started_s(pid)
    # psutil derives it from the boot time, which moves a little when the clock is adjusted.
    return found_s is not None and abs(found_s - started_s) < 2.0


def _enter(rows: list[Holder], device: str, purpose: Purpose, label: str) -> Lease:
    pid = os.getpid()
    started_s = process_started_s(pid) or 0.0
    row = Holder(secrets.token_hex(8), pid, started_s, purpose, label, time.time())
    rows.append(row)
    return Lease(device, row)


def _names(rows: Collection[Holder]) -> str:
    return ", ".join(str(row) for row in rows)


@contextmanager
def _rows(device: str) -> Iterator[list[Holder]]:
    """The device's list, locked against other processes and threads; what it is at the end is written."""
    folder = paths.home("locks")
    name = device.replace(":", "-")
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = folder / f"{name}.json"
        before = _read(file)
        rows = [row for row in before if is_alive(row.pid, row.process_started_s)]
        yield rows
        if rows != before:
            _write(file, rows)


def _read(file: Path) -> list[Holder]:
    try:
        return [Holder(**row) for row in json.loads(file.read_text())]
    except (FileNotFoundError, ValueError, TypeError):
        return []  # none yet, or not ours: leases are worth less than starting at all


def _write(file: Path, rows: list[Holder]) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    fresh.replace(file)
