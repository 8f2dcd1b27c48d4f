"""Importers: result files of other tools as Runs of the same table, with evidence "imported from TOOL".

A table of formats; a file that is none of them is refused by what it has and what is known. The settings and the
machine behind such a Run are not known here, and it says so. This file does not know any format (``imported/``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mcp_core.decision.imported import aiperf, guidellm, local, serving
from mcp_core.decision.imported.row import ImportedRow
from mcp_core.errors import InputError, ModelNotFound
from mcp_core.goal import METRICS
from mcp_core.hardware import Device, Hardware
from mcp_core.recipe import ModelRef, Recipe, validation_message
from mcp_core.results import Comparable, Imported, Measurement, RequestRecord, Run, now
from mcp_core.workload import Arrivals, Lengths, Workload

__all__ = ["FORMATS", "Format", "ImportedRun", "read_file"]

ImportedRun = tuple[Run, Sequence[RequestRecord]]
# More is no result file.
_MOST_BYTES = 512_000_000
_SHOWN_KEYS = 8
_FIGURES = (
    *("duration_s", "prompt_tokens", "output_tokens", "output_tok_s", "total_tok_s", "requests_s"),
    *("prompt_length", "output_length", "engine_tpot_ms", "load_s"),
)
_MOST_USERS, _MOST_REQUESTS, _MOST_TOKENS = 4096, 1_000_000, 1_000_000


@dataclass(frozen=True, slots=True)
class Format:
    """One tool's file. ``lines``: it may be JSON lines, each a document of its own."""

    tool: str
    fits: Callable[[Any], bool]
    read: Callable[[Any], Iterator[ImportedRow]]


FORMATS: tuple[Format, ...] = (
    Format("SGLang bench_serving", serving.is_sglang, serving.read_sglang),
    Format("vLLM bench serve", serving.is_vllm, serving.read_vllm),
    Format("AIPerf", aiperf.is_aiperf, aiperf.read_aiperf),
    Format("GuideLLM", guidellm.is_guidellm, guidellm.read_guidellm),
    Format("optimum-benchmark", local.is_optimum, local.read_optimum),
    Format("llama-bench", local.is_llama_bench, local.read_llama_bench),
)


def read_file(path: Path) -> tuple[ImportedRun, ...]:
    """The Runs in a file; reading it again gives the same ids. Raises ModelNotFound, and InputError for a file that
    is damaged or of no known tool."""
    content = _content(path)
    digest = hashlib.sha256(content).hexdigest()
    found: list[ImportedRun] = []
    for document in _documents(content, path):
        known = next((each for each in FORMATS if each.fits(document)), None)
        if known is None:
            raise _unknown(document, path)
        found += _runs(known, document, path, digest, len(found))
    return tuple(found)


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} has {path.stat().st_size / 1e6:,.0f} MB: no result file is that large.")
        return path.read_bytes()
    except OSError as error:
        raise ModelNotFound(f"{path} cannot be read: {error.strerror}.", "Name a tool's result file.") from error


def _documents(content: bytes, path: Path) -> list[Any]:
    try:
        said = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8.", _KNOWN) from error
    try:
        return [json.loads(said)]
    except (ValueError, RecursionError) as error:
        return _lines(said, path, error)


def _lines(said: str, path: Path, error: Exception) -> list[Any]:
    lines = [line for line in said.splitlines() if line.strip()]
    try:
        documents = [json.loads(line) for line in lines] if len(lines) > 1 else []
    except (ValueError, RecursionError):
        documents = []
    if not documents:
        raise InputError(f"{path} is neither JSON nor JSON lines: {error}.", _KNOWN) from error
    return documents


def _runs(known: Format, document: Any, path: Path, digest: str, first: int) -> list[ImportedRun]:
    """One document's; ``first`` is the number of the first in its file."""
    try:
        rows = list(known.read(document))
        for row in rows:
            _require_no_negative(row)
        if not all(map(_has_figures, rows)):
            raise InputError("it holds no completed request with a duration, as after a failed benchmark.")
        return [(_run(row, known.tool, path, digest, first + n), row.records) for n, row in enumerate(rows)]
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        said = _cause(error)
        raise InputError(f"{path} looks like {known.tool}, but cannot be read: {said}", "Make it again.") from error


def _has_figures(row: ImportedRow) -> bool:
    return row.completed > 0 and row.duration_s > 0 and math.isfinite(row.duration_s)


def _require_no_negative(row: ImportedRow) -> None:
    """Raises InputError naming the figure: times, rates and counts below nothing are a damaged file's."""
    figures: dict[str, Any] = {name: getattr(row, name) for name in _FIGURES}
    figures |= {f"{name} {each}": value for name in METRICS for each, value in getattr(row, name)}
    for name, value in figures.items():
        if value is not None and value < 0:
            raise InputError(f"{name} is {value:g}: it is not negative.", "The file is damaged; make it again.")


def _cause(error: Exception) -> str:
    if isinstance(error, InputError):
        return error.message
    if isinstance(error, ValidationError):
        return f"{validation_message(error)}."
    return f"{type(error).__name__}: {error}"


def _unknown(document: Any, path: Path) -> InputError:
    if isinstance(document, dict):
        names = ", ".join(map(str, list(document)[:_SHOWN_KEYS])) or "none"
        return InputError(f"{path} is of no tool that is known; its fields: {names}.", _KNOWN)
    return InputError(f"{path} is of no tool that is known: it holds a JSON {type(document).__name__}.", _KNOWN)


_KNOWN = f"Known are result files of {', '.join(each.tool for each in FORMATS)}."


def _run(row: ImportedRow, tool: str, path: Path, digest: str, index: int) -> Run:
    why = f"endpoint: imported from {tool}; the settings and the machine behind it are not known here"
    return Run(
        id=f"imported-{digest[:12]}-{index}",
        created=row.created or now(),
        recipe=Recipe(model=ModelRef(source="endpoint", id=f"{row.model} ({path.stem})"[:1024]), engine=row.engine),
        workload=_workload(row),
        hardware=_hardware(row, tool),
        status="ok",
        versions=dict(row.versions),
        measurement=_measurement(row),
        memory=row.memory,
        load_s=row.load_s,
        comparable=Comparable(ok=False, reasons=(why,)),
        evidence=f"imported from {tool}",
        imported=_imported(row, tool, path, digest),
    )


def _imported(row: ImportedRow, tool: str, path: Path, digest: str) -> Imported:
    load_known = bool(row.users or row.rate_s)
    notes = row.notes if load_known else (*row.notes, f"{tool} does not say at which load it was measured.")
    return Imported(
        tool=tool, file=path.name, sha256=digest, notes=notes, load_known=load_known, fields=dict(row.fields)
    )


def _measurement(row: ImportedRow) -> Measurement:
    total = row.prompt_tokens + row.output_tokens
    return Measurement(
        ttft_ms=row.ttft_ms,
        tpot_ms=row.tpot_ms,
        itl_ms=row.itl_ms,
        e2e_ms=row.e2e_ms,
        duration_s=row.duration_s,
        requests=row.completed + row.failed + row.cancelled,
        completed=row.completed,
        failed=row.failed,
        cancelled=row.cancelled,
        prompt_tokens=row.prompt_tokens,
        output_tokens=row.output_tokens,
        output_tok_s=row.output_tok_s,
        total_tok_s=row.total_tok_s if row.total_tok_s is not None else (total / row.duration_s if total else None),
        requests_s=row.requests_s,
        engine_tpot_ms=row.engine_tpot_ms,
        prefill_ms=row.prefill_ms,
    )


def _workload(row: ImportedRow) -> Workload:
    arrivals = Arrivals()
    if row.rate_s:
        # Above 1 they come more evenly than Poisson's, for which there is no kind; the file's figure is kept.
        poisson = row.burstiness is None or row.burstiness >= 1
        arrivals = Arrivals.model_validate(
            {"kind": "poisson", "rate_s": row.rate_s}
            if poisson
            else {"kind": "bursty", "rate_s": row.rate_s, "burstiness": row.burstiness}
        )
    return Workload(
        name=f"imported {row.label}".strip()[:80],
        requests=min(max(1, row.completed + row.failed), _MOST_REQUESTS),
        prompt_tokens=_lengths(row.prompt_length),
        output_tokens=_lengths(row.output_length),
        concurrency=min(max(1, row.users or 1), _MOST_USERS),
        arrivals=arrivals,
        warmup_requests=0,
    )


def _lengths(mean: float | None) -> Lengths:
    count = min(max(1, round(mean or 1)), _MOST_TOKENS)
    return Lengths(min=count, max=count)


def _hardware(row: ImportedRow, tool: str) -> Hardware:
    name = row.device or f"not named by {tool}"
    kind: Any = "cuda" if row.gpu else "cpu"
    device = Device(
        id="cuda:0" if row.gpu else "cpu", kind=kind, name=name, memory_total_bytes=0, memory_free_bytes=0
    )
    return Hardware(
        host="imported",
        os="",
        python="",
        cpu="",
        cores=0,
        cpu_flags=(),
        devices=(device,),
        torch_cuda="imported" if row.gpu else None,
        libraries={},
    )
