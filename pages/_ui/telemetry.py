"""A window of series in, panels out: which live charts there are, their units and what each of them means.

This file does not know how a panel is drawn (``pages/monitor.py``), or how a sample was taken or kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mcp_core.monitoring.history import Window
from mcp_core.monitoring.nvml import NvmlDevice
from mcp_core.monitoring.series import device_scope
from pages._ui import format as fmt
from pages._ui.charts import Points

__all__ = ["Panel", "device_panels", "host_panels", "over_workers", "worker_panels"]

GB = 1e9


@dataclass(frozen=True, slots=True)
class Panel:
    """One live chart: ``series`` by name, values in ``unit``; ``top`` is the upper end of its axis.

    ``note`` is a line below it, ``figure`` what stands above it instead of the newest value. ``extremes`` are the
    lowest and highest values behind the first series' means.
    """

    title: str
    meaning: str
    unit: str
    series: dict[str, Points]
    top: float | None = None
    decimals: int = 1
    note: str = ""
    figure: str = ""
    extremes: tuple[Points, Points] | None = None

    @property
    def headline(self) -> str:
        """The newest value of the first series, "–" without one; or the figure of the whole range."""
        return self.figure or self._newest(next(iter(self.series.values()), ()))

    @property
    def alt(self) -> str:
        """The chart for people who do not see it."""
        now = ", ".join(f"{name} {self._newest(points)}" for name, points in self.series.items())
        return f"{self.title} over time. Now: {now or 'not measured'}."

    def _newest(self, points: Points) -> str:
        value = points[-1][1] if points else None
        return "–" if value is None else f"{value:,.{self.decimals}f} {self.unit}".strip()


def over_workers(window: Window, figure: str, combine: Callable[[Sequence[float]], float] = sum) -> Points:
    """A gauge of all workers together, None where none has it."""
    columns = [window.mean(f"{scope}.{figure}") for scope in window.workers]
    return [
        (row.at_s, _combined([column[at][1] for column in columns], combine)) for at, row in enumerate(window.rows)
    ]


def worker_panels(window: Window) -> tuple[Panel, ...]:
    """What there is to see of the workers in the window; a cache or a pool that none has gets no panel."""
    panels = (
        _output_panel(window),
        Panel(
            "Requests",
            "Requests that the engine works on (running, the figure), those that wait for it (queued), and "
            "sequences in its newest step (batch). All workers together.",
            "",
            {
                name: over_workers(window, figure)
                for name, figure in (("running", "running"), ("queued", "queued"), ("batch", "batch_size"))
            },
            decimals=0,
        ),
        _latency_panel(window, "TTFT", "ttft", "Time to first token, queue included"),
        _latency_panel(window, "TPOT", "tpot", "Time per output token after the first"),
        _pages_panel(window),
        _prefix_panel(window),
        _speculation_panel(window),
        Panel(
            "Worker memory",
            "Resident memory of the worker and the processes that it started: the physical memory that their pages "
            "hold now. What they share counts for each.",
            "GB",
            _by_worker(window, lambda scope: _scaled(window.mean(f"{scope}.resident_bytes"), 1 / GB)),
            decimals=2,
        ),
    )
    return tuple(panel for panel in panels if panel is not None)


def host_panels(window: Window, memory_total_bytes: int) -> tuple[Panel, ...]:
    """CPU, memory and load of the whole machine."""
    cores, total = os.cpu_count() or 1, memory_total_bytes / GB
    series = {
        "all": window.mean("host.cpu_percent"),
        "workers": _scaled(over_workers(window, "cpu_percent"), 1 / cores),
        "others": _scaled(window.mean("host.others_cores"), 100 / cores),
    }
    return (
        Panel(
            "CPU",
            "Share of all cores that was busy: by all programs, by the workers, and by programs that are not this "
            "app, its workers or its jobs.",
            "%",
            _measured(series),
            top=100,
            decimals=0,
        ),
        Panel(
            "System memory",
            "Memory in use by all programs: total less what is available without swapping. The axis ends at the "
            f"total, {total:.1f} GB.",
            "GB",
            {"used": _scaled(window.mean("host.memory_used_bytes"), 1 / GB)},
            top=round(total, 1),
            decimals=2,
            extremes=_extremes(window, "host.memory_used_bytes", 1 / GB),
        ),
        Panel(
            "Load average",
            "Programs that run or wait for a core, averaged over one minute. Above the number of cores "
            f"({cores}), they wait.",
            "",
            {"one minute": window.mean("host.load_average")},
            extremes=_extremes(window, "host.load_average"),
        ),
    )


def device_panels(window: Window, device: NvmlDevice) -> tuple[Panel, ...]:
    """Everything NVML says about one device. A counter that the device lacks is an empty chart that says "–"."""
    scope = device_scope(device.index)

    def lines(**names: str) -> dict[str, Points]:
        return {title: window.mean(f"{scope}.{name}") for title, name in names.items()}

    used_j = window.total(f"{scope}.energy_j")
    return (
        _device_memory(window, device),
        Panel(
            "Utilization",
            "Share of the last sampling period in which a kernel was running (compute) or device memory was "
            "being read or written (memory).",
            "%",
            lines(compute="utilization_percent", memory="memory_utilization_percent"),
            top=100,
            decimals=0,
        ),
        Panel(
            "Power",
            "Power draw of the whole board, and the limit that it is held to. Energy is the device's own counter, "
            "or power times time where it has none.",
            "W",
            lines(draw="power_w", limit="power_limit_w"),
            decimals=0,
            note="" if used_j is None else f"{_energy(used_j)} in this range",
        ),
        Panel(
            "Temperature",
            "Temperature of the GPU's die.",
            "°C",
            lines(die="temperature_c"),
            decimals=0,
            extremes=_extremes(window, f"{scope}.temperature_c"),
        ),
        Panel(
            "Clocks",
            "Frequencies of the streaming multiprocessors (SM) and of the device memory. Below it, for how much of "
            "the range clocks were held down by the power limit or by heat.",
            "MHz",
            lines(SM="sm_clock_mhz", memory="memory_clock_mhz"),
            decimals=0,
            note=_throttled(window, scope),
        ),
    )


def _output_panel(window: Window) -> Panel:
    alone = window.workers[0] if len(window.workers) == 1 else None
    return Panel(
        "Throughput",
        "Growth of the engine's count of output tokens over time, all its requests together.",
        "tok/s",
        _by_worker(window, lambda scope: window.mean(f"{scope}.output_tok_s")),
        extremes=_extremes(window, f"{alone}.output_tok_s") if alone else None,
    )


def _latency_panel(window: Window, title: str, figure: str, words: str) -> Panel:
    """Percentiles by the engine's clock; of several workers the slowest one's."""
    return Panel(
        title,
        f"{words}: p50 and p95 of the requests that ended in the last minute, by the engine's own "
        "clock. Of several workers, the slowest one's.",
        "ms",
        {name: over_workers(window, f"{figure}_{name}_ms", max) for name in ("p50", "p95")},
    )


def _pages_panel(window: Window) -> Panel | None:
    """The paged pool, where a worker has one."""
    series = {name: over_workers(window, f"kv_pages_{name}") for name in ("used", "kept", "free")}
    if not _measured(series):
        return None
    evicted, preempted, returned = (
        _total(window, name) for name in ("kv_evictions", "preemptions", "kv_host_returned")
    )
    return Panel(
        "KV pages",
        "Pages of the pool of keys and values: used by requests that run, kept because their prefix may be asked "
        "for again, and free. An eviction gives a kept page up for room; a preemption takes a running request's "
        "pages; what was in them comes back from the host's memory where copying is cheaper, else it is computed "
        "again.",
        "",
        series,
        decimals=0,
        note=f"{fmt.count(evicted, 'eviction')}, {fmt.count(preempted, 'preemption')}, "
        f"{returned:,.0f} back from the host in this range",
    )


def _prefix_panel(window: Window) -> Panel | None:
    saved, computed = _total(window, "cached_prompt_tokens"), _total(window, "prompt_tokens")
    pooled = any(value is not None for _, value in over_workers(window, "kv_pages_used"))
    if not saved and not (computed and pooled):
        return None
    share = saved / (saved + computed)
    return Panel(
        "Prefix hits",
        "Share of prompt tokens that the prefix cache knew already, so that they were not computed again. The "
        "figure is of the whole range.",
        "%",
        {"hits": _share(window, "cached_prompt_tokens", ("cached_prompt_tokens", "prompt_tokens"))},
        top=100,
        decimals=0,
        figure=f"{share:.0%}",
        note=f"{fmt.count(saved, 'prompt token')} saved in this range",
    )


def _speculation_panel(window: Window) -> Panel | None:
    drafted, accepted = _total(window, "drafted_tokens"), _total(window, "accepted_tokens")
    if not drafted:
        return None
    return Panel(
        "Guesses accepted",
        "Share of the tokens guessed by speculative decoding that the model would have chosen itself. The figure "
        "is of the whole range.",
        "%",
        {"accepted": _share(window, "accepted_tokens", ("drafted_tokens",))},
        top=100,
        decimals=0,
        figure=f"{accepted / drafted:.0%}",
        note=f"of {fmt.count(drafted, 'guessed token')} in this range",
    )


def _device_memory(window: Window, device: NvmlDevice) -> Panel:
    scope = device_scope(device.index)
    series = {
        "all processes": _scaled(window.mean(f"{scope}.memory_used_bytes"), 1 / GB),
        "others": _scaled(window.mean(f"{scope}.others_memory_bytes"), 1 / GB),
    }
    for part in device.instances:
        series[f"MIG {part.index}"] = _scaled(window.mean(f"{scope}.mig{part.index}.memory_used_bytes"), 1 / GB)
    return Panel(
        "Device memory",
        "Memory of the device in use by all processes, and by processes that are not this app's. The axis ends at "
        "the total.",
        "GB",
        _measured(series),
        top=round(device.memory_total_bytes / GB, 1),
        decimals=2,
    )


def _by_worker(window: Window, read: Callable[[str], Points]) -> dict[str, Points]:
    """A line for each worker, named by its model; two of one model by their id, too."""
    titles = {scope: window.labels.get(scope, scope) for scope in window.workers}
    names = list(titles.values())
    return {
        f"{title} ({scope})" if names.count(title) > 1 else title: read(scope) for scope, title in titles.items()
    }


def _total(window: Window, counter: str) -> int:
    """What all workers added in the window."""
    return round(sum(window.total(f"{scope}.{counter}") or 0 for scope in window.workers))


def _share(window: Window, part: str, whole: Sequence[str]) -> Points:
    """Percent by row of counters of all workers; None where there was nothing to have a share of."""
    parts = _added(window, (part,))
    wholes = _added(window, whole)
    return [(row.at_s, 100 * parts[at] / wholes[at] if wholes[at] else None) for at, row in enumerate(window.rows)]


def _added(window: Window, counters: Sequence[str]) -> list[float]:
    columns = [window.added(f"{scope}.{name}") for scope in window.workers for name in counters]
    return [sum(column[at][1] or 0 for column in columns) for at in range(len(window.rows))]


def _combined(values: Sequence[float | None], combine: Callable[[Sequence[float]], float]) -> float | None:
    known = [value for value in values if value is not None]
    return combine(known) if known else None


def _extremes(window: Window, name: str, scale: float = 1.0) -> tuple[Points, Points] | None:
    """Lowest and highest behind each mean; None for rows of a single sample."""
    if window.span_s <= 1:
        return None
    return _scaled(window.low(name), scale), _scaled(window.high(name), scale)


def _scaled(points: Points, by: float) -> Points:
    return [(at_s, None if value is None else value * by) for at_s, value in points]


def _measured(series: dict[str, Points]) -> dict[str, Points]:
    """Without those that have no value at all, so that no legend names a line that cannot be seen."""
    return {name: points for name, points in series.items() if any(value is not None for _, value in points)}


def _throttled(window: Window, scope: str) -> str:
    """Shares of the range under each kind of throttling; empty where there was none."""
    words = []
    for kind, cause in (("power_throttled", "by the power limit"), ("thermal_throttled", "by heat")):
        values = [value for _, value in window.mean(f"{scope}.{kind}") if value is not None]
        if values and sum(values):
            words.append(f"{sum(values) / len(values):.0%} {cause}")
    return f"Held down: {', '.join(words)}" if words else ""


def _energy(joules: float) -> str:
    return f"{fmt.number(joules / 1e3)} kJ" if joules >= 1e3 else f"{fmt.number(joules)} J"
