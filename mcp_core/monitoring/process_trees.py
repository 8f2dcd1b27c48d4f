"""ProcessTrees: processes and all that they started: what a server holds and uses is mostly its children's.

What a root started is its descendants, the members of a group or session that it leads, and whatever was found to
be its at an earlier look. One that left group and session and whose parent ended before the first look is missed.
This file does not know what the processes are, or who asks.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import psutil

__all__ = ["CpuTimes", "ProcessTree", "ProcessTrees", "cpu_s_between", "together"]


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """CPU seconds of one process so far: its own, and those of children that have ended and it waited for."""

    own_s: float
    waited_for_s: float


Times = Mapping[psutil.Process, CpuTimes]


@dataclass(frozen=True, slots=True)
class ProcessTree:
    """A root and all that it started, at one look. ``pids`` has those too that ended since the look before.

    ``resident_bytes`` counts memory that processes share for each of them; it is None once the root has ended.
    """

    pids: frozenset[int] = frozenset()
    resident_bytes: int | None = None
    times: Times = field(default_factory=dict)


class ProcessTrees:
    """Looks again and again. A process belongs to the nearest root above it, so that roots may be within others.

    A look reads the list of process ids, and more of a process only when it is new or a root's.
    """

    def __init__(self) -> None:
        self._roots: frozenset[int] = frozenset()
        self._owners: dict[int, int | None] = {}  # of every process there is: its root, None for a stranger
        self._processes: dict[int, psutil.Process] = {}  # those with a root

    def look(self, roots: Collection[int]) -> dict[int, ProcessTree]:
        """The tree of each root. A process that ends meanwhile raises nothing."""
        ended = {pid for pid, process in self._processes.items() if not process.is_running()}
        before = {pid: owner for pid, owner in self._owners.items() if owner is not None}
        known = {pid: owner for pid, owner in before.items() if pid not in ended}
        here = frozenset(psutil.pids())
        self._forget(frozenset(roots), here - ended)
        for pid in here:
            self._owner(pid, known)
        owned = {pid: owner for pid, owner in self._owners.items() if owner is not None}
        kept = {pid: process for pid, process in self._processes.items() if pid not in ended}
        self._processes = {pid: found for pid in owned if (found := kept.get(pid) or _process(pid)) is not None}
        return {root: self._tree(root, before | owned) for root in roots}

    def _forget(self, roots: frozenset[int], left: frozenset[int]) -> None:
        """Whose a process is has to be found anew when it is not the same any more, or the roots are not."""
        same = roots == self._roots
        self._owners = {pid: owner for pid, owner in self._owners.items() if pid in left} if same else {}
        self._roots = roots

    def _owner(self, pid: int, known: Mapping[int, int]) -> int | None:
        if pid not in self._owners:
            self._owners[pid] = None  # should ids that were given again make a circle, it ends here
            self._owners[pid] = pid if pid in self._roots else self._owner_above(pid, known)
        return self._owners[pid]

    def _owner_above(self, pid: int, known: Mapping[int, int]) -> int | None:
        try:
            group, session, parent = os.getpgid(pid), os.getsid(pid), psutil.Process(pid).ppid()
        except (OSError, psutil.Error):
            return None
        if group in self._roots:
            return group
        above = self._owner(parent, known) if parent else None
        if above is not None:
            return above
        return next((each for each in (session, known.get(pid)) if each in self._roots), None)

    def _tree(self, root: int, owned: Mapping[int, int]) -> ProcessTree:
        pids = frozenset(pid for pid, owner in owned.items() if owner == root)
        processes = [self._processes[pid] for pid in pids if pid in self._processes]
        used = {each: found for each in processes if (found := _use(each)) is not None}
        return ProcessTree(
            pids=pids,
            resident_bytes=sum(held for held, _ in used.values()) if self._processes.get(root) in used else None,
            times={process: times for process, (_, times) in used.items()},
        )


def together(trees: Mapping[int, ProcessTree]) -> Times | None:
    """The times of all; None once one of the roots has ended, whose last share is not known."""
    if any(tree.resident_bytes is None for tree in trees.values()):
        return None
    return {process: times for tree in trees.values() for process, times in tree.times.items()}


def cpu_s_between(before: Times, now: Times) -> float:
    """CPU seconds used between two looks, by those that began or ended in between, too.

    One that ended adds all its time to its parent's (times(2)), what it had used before included. Where nobody of
    ours waited for it, what it used since the look before is missing.
    """
    nothing = CpuTimes(0.0, 0.0)
    own_s = sum(each.own_s - before.get(process, nothing).own_s for process, each in now.items())
    added_s = sum(each.waited_for_s - before.get(process, nothing).waited_for_s for process, each in now.items())
    known_s = sum(each.own_s + each.waited_for_s for process, each in before.items() if process not in now)
    return own_s + max(0.0, added_s - known_s)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _use(process: psutil.Process) -> tuple[int, CpuTimes] | None:
    """Resident bytes and CPU times; None when it has ended or may not be read."""
    try:
        with process.oneshot():
            held, times = process.memory_info().rss, process.cpu_times()
    except psutil.Error:
        return None
    waited_for_s = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return held, CpuTimes(times.user + times.system, waited_for_s)
