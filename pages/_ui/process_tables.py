"""Memory by process, of the host and of each NVIDIA device: this app's by name, all others in one row. What one of
ours started goes by its name.

This file does not know how it was read.
"""

from __future__ import annotations

from mcp_core.monitoring.nvml import NvmlDevice
from mcp_core.monitoring.sample import Sample
from pages._ui import format as fmt

__all__ = ["device_rows", "host_rows"]


def host_rows(sample: Sample) -> list[dict[str, str]]:
    """The app, its workers and its jobs by resident memory; what others use is the rest of what is used."""
    own = [
        (each.title, each.pid, each.resident_bytes, each.cpu_percent)
        for each in (*sample.workers, *sample.processes)
    ]
    rows = [_host_row(*each) for each in sorted(own, key=lambda each: -(each[2] or 0))]
    others = max(0, sample.host_memory_used_bytes - sum(each[2] or 0 for each in own))
    others_percent = None if sample.others_cores is None else 100 * sample.others_cores
    return [*rows, _host_row("All other programs", None, others, others_percent)]


def device_rows(sample: Sample, device: NvmlDevice) -> list[dict[str, str]]:
    """Every process that NVML lists on a device or on its parts; empty where a container hides them."""
    own = (*sample.workers, *sample.processes)
    titles = {pid: each.title for each in own for pid in (each.pid, *each.pids)}
    places = [("", device.process_memory_bytes)]
    places += [(f"MIG {part.index}", part.process_memory_bytes) for part in device.instances]
    found = [(used, pid, place) for place, held in places for pid, used in held.items()]
    split = bool(device.instances)
    return [
        {"process": titles.get(pid, "Another program"), "id": str(pid), "memory": fmt.size(used)}
        | ({"part": place} if split else {})
        for used, pid, place in sorted(found, reverse=True)
    ]


def _host_row(title: str, pid: int | None, used: int | None, cpu_percent: float | None) -> dict[str, str]:
    cpu = fmt.NOT_MEASURED if cpu_percent is None else f"{cpu_percent:.0f} %"
    return {
        "process": title,
        "id": "" if pid is None else str(pid),
        "memory": fmt.size(used),
        "CPU (of a core)": cpu,
    }
