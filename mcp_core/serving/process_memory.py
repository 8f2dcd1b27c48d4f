"""Resident memory of one process: what it holds now and the most it held since a reset.

Linux's own counters in /proc, psutil elsewhere. This file does not know about devices (``monitoring/nvml.py``) or
what a figure means for a Run (``results.Memory``).
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["ProcessMemory", "read_memory", "reset_peak", "trim"]


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes. ``peak_bytes`` is the most since the process began or since ``reset_peak``; None where not counted.

    ``anonymous_bytes`` is memory of its own, ``file_bytes`` pages of files that it has mapped.
    """

    resident_bytes: int
    peak_bytes: int | None
    anonymous_bytes: int | None
    file_bytes: int | None


def read_memory(pid: int | None = None) -> ProcessMemory | None:
    """Memory of the process (None: this one); None when there is no such process or it may not be read."""
    status = _proc(pid, "status")
    try:
        return _parse(status.read_text()) if status.exists() else _by_psutil(pid)
    except (OSError, psutil.Error):
        return None


def reset_peak() -> bool:
    """Let this process's peak count from now. Whether the platform could."""
    try:
        _proc(None, "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def trim() -> None:
    """Give freed heap pages back to the system, where the C library can (glibc)."""
    name = ctypes.util.find_library("c")
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(name).malloc_trim(0)


def _proc(pid: int | None, name: str) -> Path:
    return Path("/proc") / ("self" if pid is None else str(pid)) / name


def _parse(status: str) -> ProcessMemory | None:
    """The Vm and Rss lines of /proc/PID/status, which are in KiB; a zombie has none."""
    lines = (line.partition(":") for line in status.splitlines())
    kib = {key: int(rest.split()[0]) for key, _, rest in lines if key in _LINES}
    if "VmRSS" not in kib:
        return None
    resident, peak, anonymous, file = (kib[key] * 1024 if key in kib else None for key in _LINES)
    assert resident is not None
    return ProcessMemory(resident, peak, anonymous, file)


_LINES = ("VmRSS", "VmHWM", "RssAnon", "RssFile")


def _by_psutil(pid: int | None) -> ProcessMemory:
    # Windows and macOS: only Windows counts a peak, and nobody there can reset it.
    info = psutil.Process(pid).memory_info()
    return ProcessMemory(info.rss, getattr(info, "peak_wset", None), None, None)
