"""The traces that are kept: a folder each under MCP_HOME/traces, with the trace and its summary.

Together they take ``MOST_BYTES`` at most: the oldest go first. This file does not know how they are recorded.
"""

from __future__ import annotations

import functools
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mcp_core import paths
from mcp_core.errors import InputError
from mcp_core.evaluation.chrome_trace import write_trace
from mcp_core.evaluation.trace_timeline import Timelines, timelines_of
from mcp_core.trace_summary import TraceSummary

__all__ = [
    "MOST_BYTES",
    "KeptTrace",
    "delete",
    "find",
    "keep",
    "list_traces",
    "tensorboard_name",
    "timelines",
    "write_layout",
]

# A trace of 8 steps takes 1 to 5 MB.
MOST_BYTES = 1_000_000_000
_TRACE, _SUMMARY, _TIMELINE = "trace.pt.trace.json.gz", "summary.json", "timeline.json"


@dataclass(frozen=True, slots=True)
class KeptTrace:
    """One trace: its file, and what it says."""

    summary: TraceSummary
    path: Path
    bytes: int

    @property
    def id(self) -> str:
        """As its folder is called."""
        return self.summary.trace_id


def keep(document: dict[str, Any], summary: TraceSummary, most_bytes: int = MOST_BYTES) -> KeptTrace:
    """Write a trace and its summary, and drop the oldest of the others that are too many."""
    folder = paths.home("traces", summary.trace_id)
    write_trace(folder / _TRACE, document)
    summary = summary.model_copy(update={"path": str(folder / _TRACE)})
    (folder / _TIMELINE).write_text(timelines_of(document).model_dump_json())
    (folder / _SUMMARY).write_text(summary.model_dump_json(indent=2) + "\n")
    kept = KeptTrace(summary, folder / _TRACE, (folder / _TRACE).stat().st_size)
    _prune(kept, most_bytes)
    return kept


def list_traces() -> tuple[KeptTrace, ...]:
    """Every trace, newest first; a folder that holds none is not listed."""
    folders = sorted(paths.home("traces").iterdir(), reverse=True)
    return tuple(kept for folder in folders if (kept := _read(folder)) is not None)


def find(trace_id: str) -> KeptTrace:
    """One trace. Raises InputError when it is not there."""
    kept = _read(_folder(trace_id))
    if kept is None:
        raise InputError(f"There is no trace {trace_id}.", "It was deleted, or dropped as the oldest one.")
    return kept


def timelines(trace: Path) -> Timelines:
    """The longest events of a kept trace's file, placed for drawing. Raises InputError when they are gone."""
    try:
        return Timelines.model_validate_json(trace.with_name(_TIMELINE).read_bytes())
    except (OSError, ValidationError) as error:
        name = trace.parent.name
        raise InputError(f"The timeline of trace {name} cannot be read.", "Record it again.") from error


def delete(trace_id: str) -> None:
    """Drop one trace. Raises InputError when it is not there."""
    shutil.rmtree(find(trace_id).path.parent)


def tensorboard_name(kept: KeptTrace) -> str:
    """Where TensorBoard's profiler plugin looks, below its log folder: a run's folder, then worker and time."""
    created = kept.summary.created
    stamp = f".{created.timestamp() * 1e3:.0f}" if created else ""
    return f"plugins/profile/{kept.id}/{socket.gethostname()}{stamp}.pt.trace.json.gz"


def write_layout(kept: KeptTrace, folder: Path) -> Path:
    """Copy a trace to where TensorBoard finds it with ``--logdir folder``; the copy."""
    target = folder / tensorboard_name(kept)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept.path, target)
    return target


def _folder(trace_id: str) -> Path:
    if not trace_id or not all(character.isalnum() or character in "-_" for character in trace_id):
        raise InputError(f'"{trace_id}" is not the name of a trace.', "mcp-core profile prints names.")
    return paths.home("traces") / trace_id


def _read(folder: Path) -> KeptTrace | None:
    try:
        written_ns = (folder / _SUMMARY).stat().st_mtime_ns
        return KeptTrace(_summary(folder / _SUMMARY, written_ns), folder / _TRACE, (folder / _TRACE).stat().st_size)
    except (OSError, ValidationError):
        return None  # being written, or of another version


@functools.lru_cache(maxsize=1000)
def _summary(path: Path, _written_ns: int) -> TraceSummary:
    """Parsed once: pages list every trace at every run."""
    return TraceSummary.model_validate_json(path.read_bytes())


def _prune(newest: KeptTrace, most_bytes: int) -> None:
    total = newest.bytes
    for kept in list_traces():
        if kept.id == newest.id:
            continue
        total += kept.bytes
        if total > most_bytes:
            shutil.rmtree(kept.path.parent, ignore_errors=True)
