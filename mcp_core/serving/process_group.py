"""ProcessGroup: the processes that came from this one, found and ended.

A foreign server starts processes of its own, which outlive it when it is killed (vLLM's EngineCore keeps the
device's memory). They stay in the group of the process that leads it, or are its descendants; one that leaves the
group and whose parent has ended is not found. This file does not know what they are.
"""

from __future__ import annotations

import contextlib
import os
import time

import psutil

__all__ = ["end_all", "lead", "members", "resident_bytes"]

_LOOK_S = 0.05


def lead() -> None:
    """Make this process the leader of a group of its own, unless it is already."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)


def members() -> frozenset[psutil.Process]:
    """All others of this process's group, and its descendants in any group."""
    found = set(psutil.Process().children(recursive=True))
    own, group = os.getpid(), os.getpgrp()
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if process.pid != own and os.getpgid(process.pid) == group:
                found.add(process)
    return frozenset(found)


def resident_bytes(processes: frozenset[psutil.Process]) -> int:
    """What they hold together; memory that they share counts for each."""
    held = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            held += process.memory_info().rss
    return held


def end_all(known: frozenset[psutil.Process], seconds: float) -> bool:
    """Kill every member, and those ``known`` from before who may have left; whether none is left in that time."""
    end_s = time.monotonic() + seconds
    while True:
        alive = [each for each in members() | known if _runs(each)]
        if not alive or time.monotonic() > end_s:
            return not alive
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(_LOOK_S)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
