"""Output of the command line: answers on stdout, everything else on stderr.

This file does not know what is said.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcp_core.errors import McpError
from mcp_core.views import Progress

__all__ = ["ProgressReport", "complain", "emit", "note", "one_line", "say", "size", "table", "write_file"]

QUIET_S = 5.0
STEP = 0.1
# Letters of a cause that was said elsewhere: a server may answer with a whole page.
_LONGEST_CAUSE = 600


def say(text: str) -> None:
    """A line of the answer, at once. Raises McpError where stdout cannot be written, BrokenPipeError as it is."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise McpError(f"The answer cannot be written: {error.strerror}.", "Send stdout elsewhere.") from error


def note(text: str) -> None:
    """A line beside the answer."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def complain(error: McpError) -> None:
    """Cause and hint, a line each."""
    note(f"error: {one_line(error.message)}")
    if error.hint:
        note(f"hint: {one_line(error.hint)}")


def one_line(text: str) -> str:
    """Without line breaks, and cut where nobody reads on."""
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST_CAUSE else f"{words[:_LONGEST_CAUSE]} ..."


def write_file(path: Path, text: str, hint: str) -> None:
    """What --out asks for. Raises McpError with ``hint``: where else the answer is, or what to do."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise McpError(f"{path} cannot be written: {error.strerror}.", hint) from error


def emit(document: Any) -> None:
    """One JSON document as the answer."""
    say(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def table(rows: Sequence[Sequence[str]]) -> None:
    """Rows in aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def size(count: int | None) -> str:
    """Bytes as people read them."""
    if count is None:
        return "-"
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] in ("B", "kB") else f"{value:.2f} {units[0]}"


class ProgressReport:
    """Takes Progress values; writes JSON lines to stderr, or for people a line now and then.

    Elapsed is what has passed since this was made, whichever part of the command reports: parts have clocks of
    their own, and a column that jumps reads as a wait.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._begun_s = time.monotonic()
        self._stage = ""
        self._fraction = 0.0
        self._said_s = 0.0

    def __call__(self, progress: Progress) -> None:
        """Tell it, if it is worth a line."""
        elapsed_s = time.monotonic() - self._begun_s
        if self._as_json:
            note(json.dumps({"event": "progress"} | dataclasses.asdict(progress) | {"elapsed_s": elapsed_s}))
        elif self._is_news(progress):
            share = "" if progress.fraction is None else f" {progress.fraction:4.0%}"
            note(f"{elapsed_s:6.1f} s  {progress.stage}{share}  {progress.message}".rstrip())

    def _is_news(self, progress: Progress) -> bool:
        """Another stage, a tenth more, or nothing said for a while."""
        now_s, fraction = time.monotonic(), progress.fraction or 0.0
        known = progress.stage == self._stage
        if known and fraction - self._fraction < STEP and now_s - self._said_s < QUIET_S:
            return False
        self._stage, self._fraction, self._said_s = progress.stage, fraction, now_s
        return True
