"""AIPerf's ``profile_export_aiperf.json``: aggregates with a unit each.

Its inter-token latency is (request latency - TTFT) / (output tokens - 1) of a request: our TPOT. Its inter-chunk
latency is every gap: our ITL. Written from excerpts of aiperf's docs/metrics_reference.md and exporters; no file
that it wrote has been read yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mcp_core.decision.imported.row import ImportedRow, count, number, part, quantiles_of, rest, text, when
from mcp_core.errors import InputError
from mcp_core.results import Quantiles

__all__ = ["is_aiperf", "read_aiperf"]

_TO_MS = {"ms": 1.0, "milliseconds": 1.0, "s": 1e3, "sec": 1e3, "seconds": 1e3, "us": 1e-3, "ns": 1e-6}
_TAKEN = (
    *("request_latency", "time_to_first_token", "inter_token_latency", "inter_chunk_latency", "request_count"),
    *("error_request_count", "output_token_throughput", "total_token_throughput", "request_throughput"),
    *("benchmark_duration", "input_sequence_length", "output_sequence_length", "total_isl", "total_osl"),
    *("total_output_tokens", "start_time", "aiperf_version"),
)
_NAMES = "TPOT is AIPerf's inter-token latency, ITL its inter-chunk latency: their formulas are these."


def is_aiperf(document: Any) -> bool:
    """Whether this is such a file."""
    known = ("request_latency", "request_throughput", "request_count")
    return isinstance(document, Mapping) and all("avg" in part(document, name) for name in known)


def read_aiperf(document: Mapping[str, Any]) -> Iterator[ImportedRow]:
    """One row a file. Raises InputError for a unit that is not known."""
    completed = count(part(document, "request_count"), "avg")
    config = part(document, "input_config")
    load = part(config, "loadgen")
    prompt, output = _average(document, "input_sequence_length"), _average(document, "output_sequence_length")
    total_prompt, total_output = (
        _average(document, "total_isl"),
        _average(document, "total_osl", "total_output_tokens"),
    )
    requests_s = _average(document, "request_throughput")
    duration_ms = _ms(document, "benchmark_duration").mean
    version = text(document, "aiperf_version")
    yield ImportedRow(
        model=_model(config),
        engine="endpoint",
        completed=completed,
        failed=count(part(document, "error_request_count"), "avg"),
        duration_s=duration_ms / 1e3 if duration_ms else (completed / requests_s if requests_s else 0.0),
        users=count(load, "concurrency") or 1,
        rate_s=number(load, "request_rate"),
        prompt_length=prompt,
        output_length=output,
        prompt_tokens=round(total_prompt if total_prompt is not None else (prompt or 0) * completed),
        output_tokens=round(total_output if total_output is not None else (output or 0) * completed),
        output_tok_s=_average(document, "output_token_throughput"),
        total_tok_s=_average(document, "total_token_throughput"),
        requests_s=requests_s,
        ttft_ms=_ms(document, "time_to_first_token", completed),
        tpot_ms=_ms(document, "inter_token_latency", completed),
        itl_ms=_ms(document, "inter_chunk_latency", completed),
        e2e_ms=_ms(document, "request_latency", completed),
        created=when(document.get("start_time")),
        versions={"aiperf": version} if version else {},
        notes=(_NAMES,),
        fields=rest(document, _TAKEN),
    )


def _model(config: Mapping[str, Any]) -> str:
    names = part(config, "endpoint").get("model_names")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    return text(part(config, "endpoint"), "model") or "unknown model"


def _average(document: Mapping[str, Any], *names: str) -> float | None:
    return next((found for name in names if (found := number(part(document, name), "avg")) is not None), None)


def _ms(document: Mapping[str, Any], name: str, n: int = 0) -> Quantiles:
    found = part(document, name)
    if not found:
        return Quantiles()
    unit = text(found, "unit").lower()
    if unit not in _TO_MS:
        raise InputError(f'{name} has the unit "{unit}", which is not known.', f"Known are: {', '.join(_TO_MS)}.")
    levels = {level: number(found, f"p{level}") for level in (50, 90, 95, 99)}
    return quantiles_of(number(found, "avg"), levels, n, factor=_TO_MS[unit], most=number(found, "max"))
