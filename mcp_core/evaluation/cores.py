"""Cores: the worker on its own, everything of ours on the rest, and how much others used meanwhile.

This file does not know what is measured while a process is pinned. Linux only; elsewhere it says so.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import psutil

from mcp_core.monitoring.process_trees import ProcessTrees, cpu_s_between, together

__all__ = ["OthersLoad", "busy_s", "pinned", "usable_cores"]


def usable_cores() -> frozenset[int]:
    """Cores this process may use; empty where the system does not say."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


@contextlib.contextmanager
def pinned(worker_pid: int, threads: int) -> Iterator[str | None]:
    """Keep the worker's threads on the first ``threads`` cores and this process on the others, then undo it.

    Yields None, or the reason why nothing was pinned.
    """
    cores = sorted(usable_cores())
    reason = _why_not(len(cores), threads)
    if reason is not None:
        yield reason
        return
    before = _affinities(worker_pid) | _affinities(os.getpid())
    try:
        _pin(worker_pid, cores[:threads])
        _pin(os.getpid(), cores[threads:])
    except OSError as error:
        reason = f"the worker could not be pinned to its cores: {error.strerror}"
    try:
        yield reason
    finally:
        _restore(before, (worker_pid, os.getpid()), cores)


class OthersLoad:
    """Cores' worth of CPU time that processes besides ``pids`` and all that they started used since this was made,
    on ``cores``.

    Those are what this process may use now; one that was pinned since names those of before.
    """

    def __init__(self, pids: Collection[int], cores: frozenset[int] | None = None) -> None:
        self._pids = tuple(pids)
        self._cores = usable_cores() if cores is None else cores
        self._trees = ProcessTrees()
        self._since_s = time.perf_counter()
        self._busy_s, self._ours = busy_s(self._cores), together(self._trees.look(self._pids))

    def read(self) -> float | None:
        """Average since the beginning; None where the system does not tell, or one of ``pids`` has ended."""
        elapsed_s = time.perf_counter() - self._since_s
        now_s, ours = busy_s(self._cores), together(self._trees.look(self._pids))
        if now_s is None or self._busy_s is None or ours is None or self._ours is None or elapsed_s <= 0:
            return None
        return max(0.0, (now_s - self._busy_s - cpu_s_between(self._ours, ours)) / elapsed_s)


def busy_s(cores: Collection[int]) -> float | None:
    """CPU seconds that all programs together used of these cores so far; None where the system does not tell."""
    if not cores:
        return None
    every = psutil.cpu_times(percpu=True)
    if max(cores) >= len(every):  # some cores are switched off, so positions are not numbers
        return None
    used_s = sum(sum(every[core]) - every[core].idle - every[core].iowait for core in cores)
    # Linux counts guest time inside user and nice time, and the tuple lists it once more.
    return float(used_s - sum(every[core].guest + every[core].guest_nice for core in cores))


def _why_not(cores: int, threads: int) -> str | None:
    if not cores:
        return "not pinned: this system cannot pin processes to cores"
    if cores < 2:
        return "not pinned: one core is shared by the worker and the load generator"
    if threads >= cores:
        return f"not pinned: {threads} threads leave no core of {cores} to the load generator"
    return None


def _threads(pid: int) -> list[int]:
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


def _affinities(pid: int) -> dict[int, set[int]]:
    """Thread id -> cores; empty when the process has ended."""
    with contextlib.suppress(OSError):
        return {thread: os.sched_getaffinity(thread) for thread in _threads(pid)}
    return {}


def _pin(pid: int, cores: Collection[int]) -> None:
    for thread in _threads(pid):
        with contextlib.suppress(ProcessLookupError):  # the thread has ended
            os.sched_setaffinity(thread, cores)


def _restore(before: dict[int, set[int]], pids: Collection[int], cores: Collection[int]) -> None:
    """Give every thread its cores back; those started meanwhile get all of them."""
    for pid in pids:
        with contextlib.suppress(OSError):  # the worker may have died
            for thread in _threads(pid):
                os.sched_setaffinity(thread, before.get(thread, cores))
