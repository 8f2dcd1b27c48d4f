"""A Chrome trace file (JSON, gzip or not): read and checked, written.

This file does not know what its events mean.
"""

from __future__ import annotations

import gc
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcp_core.errors import InputError

__all__ = ["MOST_BYTES", "Event", "read_trace", "uncollected", "write_trace"]

Event = dict[str, Any]

# Larger ones are refused: reading takes seven times as much memory (60 MB: 426 MB).
MOST_BYTES = 800_000_000
_GZIP = b"\x1f\x8b"


def read_trace(path: Path) -> dict[str, Any]:
    """The document, with ``traceEvents`` a list of objects. Raises InputError for anything else."""
    document = _parsed(path)
    events = document.get("traceEvents") if isinstance(document, dict) else document
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise InputError(
            f"{path.name} is not a Chrome trace: it has no list of events.",
            "Give a file that mcp-core profile wrote.",
        )
    return document if isinstance(document, dict) else {"traceEvents": events}


def write_trace(path: Path, document: dict[str, Any]) -> None:
    """Write it compressed; a reader finds the whole file or none."""
    fresh = path.with_name(path.name + ".new")
    # Fast: level 6 takes three times as long for a tenth less.
    with gzip.open(fresh, "wb", compresslevel=2) as file:
        file.write(json.dumps(document, separators=(",", ":")).encode())
    fresh.replace(path)


@contextmanager
def uncollected() -> Iterator[None]:
    """Half a million new objects without a cycle among them: the collector would look at them all, again and again,
    which takes four times as long as parsing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _parsed(path: Path) -> Any:
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
        with gzip.open(path) if packed else path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:  # gzip's own errors are of this kind, too
        raise InputError(f"{path.name} cannot be read: {error.strerror or error}.", "Record it again.") from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path.name} is cut off or damaged: {error}.", "Record it again.") from error
    if len(content) > MOST_BYTES:
        raise InputError(
            f"{path.name} holds more than {MOST_BYTES / 1e6:.0f} MB of events.",
            "Record fewer steps, without stacks.",
        )
    try:
        with uncollected():
            return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not JSON: {error}.", "It may be cut off; record it again.") from error
