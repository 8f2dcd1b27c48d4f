"""Sample: the machine and its workers at one moment, and what has to be handed in to take one.

This file does not know how a sample is taken (``taker.py``) or kept (``history.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_core.generation import EngineStats
from mcp_core.monitoring.latency import RecentLatency
from mcp_core.monitoring.nvml import NvmlDevice

__all__ = ["OwnProcess", "ProcessProbe", "Sample", "WorkerProbe", "WorkerSample"]


@dataclass(frozen=True, slots=True)
class WorkerProbe:
    """Which process to look at, and the newest counters its engine reported (None: not known).

    ``stats_at_s`` is time.monotonic() when those counters were read; None stands for "just now". ``pid`` None is a
    server whose processes are not known.
    """

    worker_id: str
    pid: int | None
    title: str
    stats: EngineStats | None
    stats_at_s: float | None = None
    latency: RecentLatency | None = None


@dataclass(frozen=True, slots=True)
class ProcessProbe:
    """Another process of this app: itself, or a job."""

    pid: int
    title: str


@dataclass(frozen=True, slots=True)
class WorkerSample:
    """One worker at one moment: its process ``pid`` and all that it started, together (``process_trees.py``).

    ``cpu_percent`` is of one core; ``device_bytes`` by NVML device index; ``pids`` are all its processes.

    ``output_tok_s`` is the growth of ``output_tokens_total`` between the two newest readings of the counters over
    the time between them; None before the second reading and when they stop coming. ``added`` is what the engine's
    counters grew by since the sample before, by name without ``_total``. ``device_bytes`` is empty where a
    container hides processes from NVML.
    """

    worker_id: str
    title: str
    resident_bytes: int | None
    cpu_percent: float | None
    device_bytes: dict[int, int]
    stats: EngineStats | None
    output_tok_s: float | None
    latency: RecentLatency | None = None
    added: dict[str, int] | None = None
    pid: int | None = None
    pids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class OwnProcess:
    """A process of this app that is no worker, with all that it started but workers and jobs: ``pids``.

    ``cpu_percent`` is of one core.
    """

    pid: int
    title: str
    resident_bytes: int | None
    cpu_percent: float | None
    pids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Sample:
    """The machine at one moment. ``at_s`` is time.time(); ``load_average`` over one minute.

    ``others_cores`` is the CPU time that programs other than this app, its workers, its jobs and all that these
    started used since the sample before, over the time between: 1.0 is one busy core. ``energy_j`` is what each
    device used meanwhile, by index: its own counter, or power times time where it has none.
    """

    at_s: float
    host_cpu_percent: float | None
    host_memory_used_bytes: int
    host_memory_total_bytes: int
    load_average: float | None
    devices: tuple[NvmlDevice, ...]
    workers: tuple[WorkerSample, ...]
    processes: tuple[OwnProcess, ...] = ()
    others_cores: float | None = None
    energy_j: dict[int, float] | None = None

    @property
    def own_pids(self) -> frozenset[int]:
        """Processes of this app, and all that they started."""
        pids = {each.pid for each in self.processes} | {each.pid for each in self.workers if each.pid is not None}
        return frozenset(pids).union(*(each.pids for each in self.processes), *(each.pids for each in self.workers))
