"""Which series there are: one Sample as named numbers.

A name is SCOPE.FIGURE_UNIT. Scopes are ``host``; ``gpu0``, ``gpu1``...; ``gpu0.mig1`` for a part of a split device;
a worker's id. ``_host``, ``_device`` and ``_worker`` below are the list. This file does not know how samples are
taken or kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mcp_core.monitoring.nvml import POWER_CAP, POWER_REASONS, SLOWDOWN_REASONS, THERMAL_REASONS, NvmlDevice
from mcp_core.monitoring.sample import Sample, WorkerSample

__all__ = ["Readings", "device_scope", "is_worker", "readings_of"]

Figures = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Readings:
    """Gauges: how much there is now. Counters: what was added since the sample before. Labels: titles by scope."""

    gauges: Figures = field(default_factory=dict)
    counters: Figures = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


def device_scope(index: int) -> str:
    """The scope of an NVIDIA device."""
    return f"gpu{index}"


def is_worker(scope: str) -> bool:
    """Whether a scope is a worker's."""
    return scope != "host" and not scope.startswith("gpu")


def readings_of(sample: Sample) -> Readings:
    """Every figure of a sample by its name; None was not measured."""
    found = Readings(labels={"host": "Host"})
    _put(found.gauges, "host", _host(sample))
    for device in sample.devices:
        scope = device_scope(device.index)
        found.labels[scope] = device.name
        _put(found.gauges, scope, _device(device, sample.own_pids))
        found.counters[f"{scope}.energy_j"] = (sample.energy_j or {}).get(device.index)
    for worker in sample.workers:
        found.labels[worker.worker_id] = worker.title
        _put(found.gauges, worker.worker_id, _worker(worker))
        _put(found.counters, worker.worker_id, dict(worker.added or {}))
    return found


def _put(into: Figures, scope: str, figures: Figures) -> None:
    into.update({f"{scope}.{name}": value for name, value in figures.items()})


def _host(sample: Sample) -> Figures:
    """CPU of all cores; cores' worth of CPU time that programs other than this app and its children used."""
    return {
        "cpu_percent": sample.host_cpu_percent,
        "others_cores": sample.others_cores,
        "memory_used_bytes": sample.host_memory_used_bytes,
        "load_average": sample.load_average,
    }


def _device(device: NvmlDevice, own: frozenset[int]) -> Figures:
    """``others_memory_bytes`` is of processes that are not this app's, None where a container hides processes.

    A throttled figure is 1 while clocks are held down for that reason, so its mean is a share of time; so are
    ``power_capped`` (the software power cap alone) and ``slowed`` (heat, or the board or its supply).
    """
    held = device.process_memory_bytes
    figures: Figures = {
        "memory_used_bytes": device.memory_used_bytes,
        "others_memory_bytes": sum(used for pid, used in held.items() if pid not in own) if held else None,
        "utilization_percent": device.utilization_percent,
        "memory_utilization_percent": device.memory_utilization_percent,
        "power_w": device.power_w,
        "power_limit_w": device.power_limit_w,
        "power_limit_default_w": device.power_limit_default_w,
        "temperature_c": device.temperature_c,
        "sm_clock_mhz": device.sm_clock_mhz,
        "memory_clock_mhz": device.memory_clock_mhz,
        "power_throttled": _given(device, POWER_REASONS),
        "thermal_throttled": _given(device, THERMAL_REASONS),
        "power_capped": _given(device, POWER_CAP),
        "slowed": _given(device, SLOWDOWN_REASONS),
    }
    return figures | {f"mig{each.index}.memory_used_bytes": each.memory_used_bytes for each in device.instances}


def _given(device: NvmlDevice, reasons: int) -> float | None:
    return None if device.throttle_reasons is None else float(bool(device.throttle_reasons & reasons))


def _worker(worker: WorkerSample) -> Figures:
    """``cpu_percent`` is of one core; latencies are of the last minute's requests by the engine's clock."""
    stats, latency = worker.stats, worker.latency
    figures: Figures = {
        "output_tok_s": worker.output_tok_s,
        "resident_bytes": worker.resident_bytes,
        "cpu_percent": worker.cpu_percent,
        "device_bytes": sum(worker.device_bytes.values()) if worker.device_bytes else None,
    }
    if stats is not None:
        figures |= {
            "running": stats.running,
            "queued": stats.queued,
            "batch_size": stats.batch_size if stats.running else 0,
            "kv_tokens": stats.kv_tokens,
        }
        if stats.kv_pages_total:
            figures |= {
                "kv_pages_used": stats.kv_pages_used,
                "kv_pages_kept": stats.kv_pages_kept,
                "kv_pages_free": stats.kv_pages_total - stats.kv_pages_used - stats.kv_pages_kept,
            }
    if latency is not None:
        figures |= {
            "ttft_p50_ms": latency.ttft_p50_ms,
            "ttft_p95_ms": latency.ttft_p95_ms,
            "tpot_p50_ms": latency.tpot_p50_ms,
            "tpot_p95_ms": latency.tpot_p95_ms,
        }
    return figures
