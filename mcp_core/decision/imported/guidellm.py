"""GuideLLM's ``benchmarks.json``: one row for each load that it tried.

Its inter-token latency is a request's (last - first token) / (tokens - 1): our TPOT; its own time per output token
includes the first one, so it is kept beside. It pools no gaps: there is no ITL. Its request latency is in seconds.
Written from excerpts of guidellm/benchmark/schemas/generative; no file that it wrote has been read yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mcp_core.decision.imported.row import ImportedRow, count, number, part, quantiles_of, rest, text, when
from mcp_core.results import Quantiles

__all__ = ["is_guidellm", "read_guidellm"]

_NOTE = "TPOT is GuideLLM's inter-token latency, weighted by tokens; its own TPOT includes the first token."
_TAKEN_METRICS = (
    *("time_to_first_token_ms", "inter_token_latency_ms", "request_latency", "request_totals"),
    *("requests_per_second", "output_tokens_per_second", "tokens_per_second"),
)
_OPEN = ("constant", "poisson", "async")


def is_guidellm(document: Any) -> bool:
    """Whether this is such a file."""
    rows = document.get("benchmarks") if isinstance(document, Mapping) else None
    return isinstance(rows, list) and bool(rows) and "time_to_first_token_ms" in part(rows[0], "metrics")


def read_guidellm(document: Mapping[str, Any]) -> Iterator[ImportedRow]:
    """One row a benchmark."""
    version = text(part(document, "metadata"), "guidellm_version")
    for index, each in enumerate(document["benchmarks"]):
        yield _row(each, document, index, version)


def _row(each: Mapping[str, Any], document: Mapping[str, Any], index: int, version: str) -> ImportedRow:
    metrics = part(each, "metrics")
    totals = part(metrics, "request_totals")
    completed = count(totals, "successful")
    strategy = (
        part(each, "config", "strategy") or part(each, "args", "strategy") or part(each, "scheduler", "strategy")
    )
    prompt, output = _tokens(metrics, "prompt_token_count"), _tokens(metrics, "output_token_count")
    return ImportedRow(
        model=_model(each, document),
        engine="endpoint",
        label=text(strategy, "type_"),
        completed=completed,
        failed=count(totals, "errored"),
        cancelled=count(totals, "incomplete"),
        duration_s=_duration(each),
        users=_users(strategy),
        rate_s=number(strategy, "rate") if _is_open(strategy) else None,
        prompt_length=prompt / completed if completed else None,
        output_length=output / completed if completed else None,
        prompt_tokens=round(prompt),
        output_tokens=round(output),
        output_tok_s=number(part(metrics, "output_tokens_per_second", "successful"), "mean"),
        total_tok_s=number(part(metrics, "tokens_per_second", "successful"), "mean"),
        requests_s=number(part(metrics, "requests_per_second", "successful"), "mean"),
        ttft_ms=_quantiles(metrics, "time_to_first_token_ms", completed, 1.0),
        tpot_ms=_quantiles(metrics, "inter_token_latency_ms", completed, 1.0),
        e2e_ms=_quantiles(metrics, "request_latency", completed, 1e3),
        created=when(each.get("start_time")),
        versions={"guidellm": version} if version else {},
        notes=(_NOTE,),
        fields={
            "benchmark": index,
            "metrics": rest(metrics, _TAKEN_METRICS),
            **rest(each, ("metrics", "requests", "request_samples")),
        },
    )


def _is_open(strategy: Mapping[str, Any]) -> bool:
    return text(strategy, "type_").startswith(_OPEN)


def _users(strategy: Mapping[str, Any]) -> int | None:
    """None where it is not fixed: "throughput" sends as many as the server takes, unless a limit is named."""
    if _is_open(strategy):
        return None
    named = count(strategy, "streams", "max_concurrency")
    return named or (1 if text(strategy, "type_") == "synchronous" else None)


def _model(each: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    places = (part(each, "config", "backend"), part(each, "benchmarker", "backend"), part(document, "args"))
    named = next((found for place in places if (found := text(place, "model", "target_model"))), "")
    return named or "unknown model"


def _duration(each: Mapping[str, Any]) -> float:
    start, end = number(each, "start_time"), number(each, "end_time")
    stated = number(each, "duration") or number(part(each, "run_stats"), "total_time")
    return stated or (end - start if start is not None and end is not None else 0.0)


def _tokens(metrics: Mapping[str, Any], name: str) -> float:
    return number(part(metrics, name, "successful"), "total_sum", "sum") or 0.0


def _quantiles(metrics: Mapping[str, Any], name: str, n: int, factor: float) -> Quantiles:
    found = part(metrics, name, "successful")
    inner = part(found, "percentiles") or found
    levels = {level: number(inner, f"p{level}") for level in (50, 90, 95, 99)}
    levels[50] = levels[50] if levels[50] is not None else number(found, "median")
    return quantiles_of(number(found, "mean"), levels, n, factor=factor, most=number(found, "max"))
