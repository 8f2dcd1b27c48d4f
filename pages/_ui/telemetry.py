"""Samples in, panels and CSV out: which live charts there are, their units and what each of them means.

This file does not know how a panel is drawn (``pages/monitor.py``) or how a sample was taken.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mcp_core.monitoring.nvml import NvmlDevice
from mcp_core.monitoring.sample import Sample, WorkerSample
from pages._ui.charts import Points

GB = 1e9


@dataclass(frozen=True, slots=True)
class Panel:
    """One live chart: ``series`` by name, values in ``unit``; ``top`` is the upper end of its axis."""

    title: str
    meaning: str
    unit: str
    series: dict[str, Points]
    top: float | None = None
    decimals: int = 1

    @property
    def headline(self) -> str:
        """The newest value of the first series; "–" without one."""
        return self._newest(next(iter(self.series.values()), ()))

    @property
    def alt(self) -> str:
        """The chart for people who do not see it."""
        now = ", ".join(f"{name} {self._newest(points)}" for name, points in self.series.items())
        return f"{self.title} over time. Now: {now or 'not measured'}."

    def _newest(self, points: Points) -> str:
        value = points[-1][1] if points else None
        return "–" if value is None else f"{value:,.{self.decimals}f} {self.unit}".strip()


def worker_panels(samples: Sequence[Sample]) -> tuple[Panel, ...]:
    """Speed, queue and memory of every worker that is in the samples."""
    return (
        _per_worker(
            samples,
            "Output speed",
            "Growth of the engine's count of output tokens over the last second, all its requests together.",
            "tok/s",
            lambda worker: worker.output_tok_s,
        ),
        _queue_panel(samples),
        _per_worker(
            samples,
            "Worker memory",
            "Resident memory of the worker process: the physical memory that its pages hold now.",
            "GB",
            lambda worker: _gb(worker.resident_bytes),
            decimals=2,
        ),
    )


def host_panels(samples: Sequence[Sample]) -> tuple[Panel, ...]:
    """CPU, memory and load of the whole machine."""
    total = samples[-1].host_memory_total_bytes / GB
    return (
        Panel(
            "CPU",
            "Share of all cores that was busy over the last second: by all programs, and by the workers.",
            "%",
            _measured(
                {
                    "all programs": [(sample.at_s, sample.host_cpu_percent) for sample in samples],
                    "workers": [(sample.at_s, _workers_cpu_percent(sample)) for sample in samples],
                }
            ),
            top=100,
            decimals=0,
        ),
        Panel(
            "System memory",
            "Memory in use by all programs: total less what is available without swapping. The axis ends at the "
            f"total, {total:.1f} GB.",
            "GB",
            {"used": [(sample.at_s, sample.host_memory_used_bytes / GB) for sample in samples]},
            top=round(total, 1),
            decimals=2,
        ),
        Panel(
            "Load average",
            "Programs that run or wait for a core, averaged over one minute. Above the number of cores "
            f"({os.cpu_count()}), they wait.",
            "",
            {"one minute": [(sample.at_s, sample.load_average) for sample in samples]},
        ),
    )


def device_panels(samples: Sequence[Sample], index: int) -> tuple[Panel, ...]:
    """Everything NVML says about one device. A counter that the device lacks is an empty chart that says "–"."""
    device = next(device for device in samples[-1].devices if device.index == index)
    return (
        _device_memory(samples, device),
        _per_device(
            samples,
            index,
            "Utilization",
            "Share of the last sampling period in which a kernel was running (compute) or device memory was "
            "being read or written (memory).",
            "%",
            {
                "compute": lambda each: each.utilization_percent,
                "memory": lambda each: each.memory_utilization_percent,
            },
            top=100,
            decimals=0,
        ),
        _per_device(
            samples,
            index,
            "Power",
            "Power draw of the whole board, and the limit that it is held to.",
            "W",
            {"draw": lambda each: each.power_w, "limit": lambda each: each.power_limit_w},
            decimals=0,
        ),
        _per_device(
            samples,
            index,
            "Temperature",
            "Temperature of the GPU's die.",
            "°C",
            {"die": lambda each: each.temperature_c},
            decimals=0,
        ),
        _per_device(
            samples,
            index,
            "Clocks",
            "Frequencies of the streaming multiprocessors (SM) and of the device memory.",
            "MHz",
            {"SM": lambda each: each.sm_clock_mhz, "memory": lambda each: each.memory_clock_mhz},
            decimals=0,
        ),
    )


def csv_text(samples: Sequence[Sample]) -> str:
    """One row a sample; columns of workers and devices are named after them. Unmeasured is empty."""
    rows = [_row(sample) for sample in samples]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _queue_panel(samples: Sequence[Sample]) -> Panel:
    return Panel(
        "Requests",
        "Requests that the engine works on (running, the figure) and those that wait for it (queued), all workers "
        "together.",
        "",
        {name: [(sample.at_s, _requests(sample, name)) for sample in samples] for name in ("running", "queued")},
        decimals=0,
    )


def _requests(sample: Sample, name: str) -> float | None:
    counts = [getattr(worker.stats, name) for worker in sample.workers if worker.stats is not None]
    return float(sum(counts)) if counts else None


def _workers_cpu_percent(sample: Sample) -> float | None:
    """Of all cores, as the host's; a worker's own percent is of one core."""
    known = [worker.cpu_percent for worker in sample.workers if worker.cpu_percent is not None]
    return sum(known) / (os.cpu_count() or 1) if known else None


def _per_worker(
    samples: Sequence[Sample],
    title: str,
    meaning: str,
    unit: str,
    read: Callable[[WorkerSample], float | None],
    *,
    decimals: int = 1,
) -> Panel:
    newest_first = {worker.worker_id: worker.title for sample in reversed(samples) for worker in sample.workers}
    series = {
        f"{name} ({worker_id})" if list(newest_first.values()).count(name) > 1 else name: [
            (sample.at_s, _value_of(sample, worker_id, read)) for sample in samples
        ]
        for worker_id, name in newest_first.items()
    }
    return Panel(title, meaning, unit, series, decimals=decimals)


def _value_of(sample: Sample, worker_id: str, read: Callable[[WorkerSample], float | None]) -> float | None:
    return next((read(worker) for worker in sample.workers if worker.worker_id == worker_id), None)


def _per_device(
    samples: Sequence[Sample],
    index: int,
    title: str,
    meaning: str,
    unit: str,
    reads: dict[str, Callable[[NvmlDevice], float | None]],
    *,
    top: float | None = None,
    decimals: int = 1,
) -> Panel:
    series: dict[str, Points] = {
        name: [(sample.at_s, _reading_of(sample, index, read)) for sample in samples]
        for name, read in reads.items()
    }
    return Panel(title, meaning, unit, series, top=top, decimals=decimals)


def _reading_of(sample: Sample, index: int, read: Callable[[NvmlDevice], float | None]) -> float | None:
    return next((read(device) for device in sample.devices if device.index == index), None)


def _device_memory(samples: Sequence[Sample], device: NvmlDevice) -> Panel:
    used: Points = [
        (sample.at_s, _reading_of(sample, device.index, lambda each: each.memory_used_bytes / GB))
        for sample in samples
    ]
    own: Points = [(sample.at_s, _gb(_worker_device_bytes(sample, device.index))) for sample in samples]
    return Panel(
        "Device memory",
        "Memory of the device in use by all processes, and by the workers of this app. The axis ends at the total.",
        "GB",
        _measured({"all processes": used, "workers": own}),
        top=round(device.memory_total_bytes / GB, 1),
        decimals=2,
    )


def _measured(series: dict[str, Points]) -> dict[str, Points]:
    """Without those that have no value at all, so that no legend names a line that cannot be seen."""
    return {name: points for name, points in series.items() if any(value is not None for _, value in points)}


def _worker_device_bytes(sample: Sample, index: int) -> int | None:
    known = [worker.device_bytes[index] for worker in sample.workers if index in worker.device_bytes]
    return sum(known) if known else None


def _gb(value: float | None) -> float | None:
    return None if value is None else value / GB


def _row(sample: Sample) -> dict[str, object]:
    row: dict[str, object] = {
        "time_utc": datetime.fromtimestamp(sample.at_s, UTC).isoformat(timespec="milliseconds"),
        "host_cpu_percent": sample.host_cpu_percent,
        "host_memory_used_bytes": sample.host_memory_used_bytes,
        "host_memory_total_bytes": sample.host_memory_total_bytes,
        "load_average": sample.load_average,
    }
    for worker in sample.workers:
        row |= {f"worker_{worker.worker_id}_{name}": value for name, value in _worker_cells(worker).items()}
    for device in sample.devices:
        row |= {f"gpu{device.index}_{name}": getattr(device, name) for name in _DEVICE_COLUMNS}
    return row


_DEVICE_COLUMNS = (
    "memory_used_bytes",
    "memory_total_bytes",
    "utilization_percent",
    "memory_utilization_percent",
    "power_w",
    "power_limit_w",
    "temperature_c",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "throttle_reasons",
    "energy_mj",
)


def _worker_cells(worker: WorkerSample) -> dict[str, object]:
    stats = worker.stats
    return {
        "output_tok_s": worker.output_tok_s,
        "running": stats.running if stats else None,
        "queued": stats.queued if stats else None,
        "output_tokens_total": stats.output_tokens_total if stats else None,
        "resident_bytes": worker.resident_bytes,
        "cpu_percent": worker.cpu_percent,
        **{f"gpu{index}_bytes": used for index, used in worker.device_bytes.items()},
    }
