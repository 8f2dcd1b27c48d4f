"""Recordings: when real requests came and how long they were, kept by content hash, to be replayed.

A file is JSON lines or CSV, read by its columns: our own (``at_s``, ``prompt_tokens``, ``output_tokens``),
Mooncake's (``timestamp`` in ms, ``input_length``, ``output_length``; github.com/kvcache-ai/Mooncake) and Azure's
(``TIMESTAMP`` as a date, ``ContextTokens``, ``GeneratedTokens``; github.com/Azure/AzurePublicDataset).
This file does not know how a recording is sent.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mcp_core import paths
from mcp_core.errors import InputError, StoreError

__all__ = ["RecordedRequest", "Recording", "add", "get", "list_recordings"]

MOST_REQUESTS = 1_000_000
_MOST_TOKENS = 1_000_000
_COLUMNS = (
    ("at_s", "prompt_tokens", "output_tokens"),
    ("timestamp", "input_length", "output_length"),
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
)
_HINT = "A row a request: at_s, prompt_tokens, output_tokens, as JSON lines or CSV."


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request: seconds after the first one, and its lengths in tokens."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Recording:
    """Requests in the order in which they came, the first at 0 s."""

    sha256: str
    name: str
    requests: tuple[RecordedRequest, ...]

    @property
    def duration_s(self) -> float:
        """From the first request to the last, s."""
        return self.requests[-1].at_s

    @property
    def rate_s(self) -> float | None:
        """Mean requests a second; None when all came at once."""
        return (len(self.requests) - 1) / self.duration_s if self.duration_s else None


def add(name: str, content: bytes) -> Recording:
    """Keep what is in a file. Raises InputError naming the line that is not understood."""
    rows = sorted(_requests(name, content), key=lambda each: each.at_s)
    if not rows:
        raise InputError(f"{name} has no requests.", _HINT)
    begun_s = rows[0].at_s
    document = [[round(each.at_s - begun_s, 6), each.prompt_tokens, each.output_tokens] for each in rows]
    sha256 = hashlib.sha256(json.dumps(document).encode()).hexdigest()
    path = paths.home("recordings") / f"{sha256}.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"name": name, "requests": document}))
    fresh.replace(path)
    return get(sha256)


def get(sha256: str) -> Recording:
    """The recording of that hash. Raises InputError when it is not kept here."""
    path = paths.home("recordings") / f"{sha256}.json"
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) or not path.is_file():
        raise InputError(f'There is no recording "{sha256[:64]}" on this machine.', "Add its file again.")
    return _read(path)


def list_recordings() -> tuple[Recording, ...]:
    """Those that are kept here, by name."""
    return tuple(sorted(map(_read, paths.home("recordings").glob("*.json")), key=lambda each: each.name))


def _read(path: Path) -> Recording:
    try:
        document = json.loads(path.read_text())
        rows = tuple(RecordedRequest(*row) for row in document["requests"])
        return Recording(path.stem, document["name"], rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"The recording {path} cannot be read.", "Delete it, and add the file again.") from error


def _requests(name: str, content: bytes) -> Iterator[RecordedRequest]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text.", _HINT) from error
    rows = _csv_rows(name, text) if name.lower().endswith(".csv") else _json_rows(name, text)
    for count, (line, row) in enumerate(rows):
        if count >= MOST_REQUESTS:
            raise InputError(f"{name} has more than {MOST_REQUESTS:,} requests.", "Cut it.")
        yield _request(name, line, row)


def _json_rows(name: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, row in enumerate(text.split("\n"), 1):
        if not row.strip():
            continue
        try:
            document = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}, line {line}, is not JSON.", _HINT) from error
        if not isinstance(document, dict):
            raise InputError(f"{name}, line {line}, is not a JSON object.", _HINT)
        yield line, document


def _csv_rows(name: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}, is not CSV: {error}.", _HINT) from error


def _request(name: str, line: int, row: Mapping[str, Any]) -> RecordedRequest:
    columns = next((each for each in _COLUMNS if all(column in row for column in each)), None)
    if columns is None:
        raise InputError(f"{name}, line {line}, has none of the columns that are understood.", _HINT)
    at, prompt, output = (row[column] for column in columns)
    try:
        seconds = (
            float(at) / (1000 if columns[0] == "timestamp" else 1) if columns[0] != "TIMESTAMP" else _date_s(at)
        )
        tokens = int(prompt), int(output)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{name}, line {line}: {at}, {prompt}, {output} are not a time and counts.", _HINT
        ) from error
    if not abs(seconds) < float("inf") or not all(0 <= each <= _MOST_TOKENS for each in tokens):
        raise InputError(f"{name}, line {line}: {at}, {prompt}, {output} are out of range.", _HINT)
    return RecordedRequest(seconds, max(1, tokens[0]), max(1, tokens[1]))


def _date_s(text: str) -> float:
    """Azure writes seven digits of a second, of which Python reads six."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text.strip())).timestamp()
