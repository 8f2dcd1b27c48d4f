"""``vllm bench serve`` (--save-result) and ``sglang.bench_serving`` (--output-file): nearly the same fields.

TTFT, TPOT ((E2E - TTFT) / (output tokens - 1), statistics over requests) and E2E are ours. vLLM's ITL is ours too:
every gap between chunks, pooled. SGLang shares a gap out over the tokens that its chunk brought; a note says so.
Sources: vllm/benchmarks/serve.py, sglang/bench_serving.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from mcp_core.decision.imported.row import ImportedRow, count, number, quantiles_of, rest, text, when
from mcp_core.results import Failure, Quantiles, RequestRecord

__all__ = ["is_sglang", "is_vllm", "read_sglang", "read_vllm"]

_LEVELS = (50, 90, 95, 99)
_LISTS = ("ttfts", "itls", "input_lens", "output_lens", "errors")
_TAKEN = (
    *("completed", "failed", "duration", "total_input_tokens", "total_output_tokens", "request_throughput"),
    *("output_throughput", "total_token_throughput", "total_throughput", "max_concurrency", "request_rate"),
    *("date", "backend", "model_id", *_LISTS),
)
_SGLANG_ITL = "ITL: SGLang's tool divides a gap by the tokens of its chunk; ours is the gap between chunks."


def is_vllm(document: Any) -> bool:
    """Whether this is such a file."""
    return _has(document, "mean_ttft_ms", "mean_tpot_ms", "duration", "completed", "total_token_throughput")


def is_sglang(document: Any) -> bool:
    """The same, one line of it."""
    return _has(document, "mean_ttft_ms", "mean_e2e_latency_ms", "duration", "completed", "output_throughput")


def read_vllm(document: Mapping[str, Any]) -> Iterator[ImportedRow]:
    """One row a file."""
    yield _row(document, "e2el", ())


def read_sglang(document: Mapping[str, Any]) -> Iterator[ImportedRow]:
    """One row a line."""
    yield _row(document, "e2e_latency", (_SGLANG_ITL,))


def _row(document: Mapping[str, Any], e2e: str, notes: tuple[str, ...]) -> ImportedRow:
    completed, backend = count(document, "completed"), text(document, "backend")
    rate = number(document, "request_rate")
    errors = document.get("errors")
    failed = count(document, "failed") or (sum(map(bool, errors)) if isinstance(errors, list) else 0)
    input_tokens, output_tokens = count(document, "total_input_tokens"), count(document, "total_output_tokens")
    names = ("ttft", "tpot", "itl", e2e)
    taken = [*_TAKEN, *(f"{kind}_{name}_ms" for name in names for kind in ("mean", "median", *_percentile_names()))]
    is_sglang_server = e2e == "e2e_latency" and not backend.startswith("vllm")
    return ImportedRow(
        model=text(document, "model_id", "model", "tokenizer_id") or backend or "unknown model",
        engine="sglang" if is_sglang_server else "vllm",
        completed=completed,
        failed=failed,
        duration_s=number(document, "duration") or 0.0,
        users=count(document, "max_concurrency") or (1 if rate else max(1, completed)),
        rate_s=rate,
        burstiness=number(document, "burstiness"),
        prompt_length=input_tokens / completed if completed else None,
        output_length=output_tokens / completed if completed else None,
        prompt_tokens=input_tokens,
        output_tokens=output_tokens,
        output_tok_s=number(document, "output_throughput"),
        total_tok_s=number(document, "total_token_throughput", "total_throughput"),
        requests_s=number(document, "request_throughput"),
        ttft_ms=_quantiles(document, "ttft", completed),
        tpot_ms=_quantiles(document, "tpot", completed),
        itl_ms=_quantiles(document, "itl", completed),
        e2e_ms=_quantiles(document, e2e, completed),
        created=when(document.get("date")),
        records=tuple(_records(document)),
        notes=notes,
        fields=rest(document, taken),
    )


def _has(document: Any, *names: str) -> bool:
    return isinstance(document, Mapping) and all(name in document for name in names)


def _percentile_names() -> tuple[str, ...]:
    return tuple(f"p{level}" for level in _LEVELS)


def _quantiles(document: Mapping[str, Any], name: str, n: int) -> Quantiles:
    levels = {level: number(document, f"p{level}_{name}_ms") for level in _LEVELS}
    levels[50] = levels[50] if levels[50] is not None else number(document, f"median_{name}_ms")
    mean = number(document, f"mean_{name}_ms")
    return quantiles_of(mean, levels, n if mean is not None else 0)


def _records(document: Mapping[str, Any]) -> Iterator[RequestRecord]:
    """Request by request, where the file was made with details (seconds); when each was sent is not in it."""
    lists = [each for name in _LISTS[:4] if isinstance(each := document.get(name), list)]
    if len(lists) < len(_LISTS) - 1:
        return
    ttfts, itls, inputs, outputs = lists
    said = document.get("errors")
    errors = said if isinstance(said, list) else [""] * len(ttfts)
    for index, (ttft, gaps, asked, got, error) in enumerate(
        zip(ttfts, itls, inputs, outputs, errors, strict=False)
    ):
        if error:
            failure = Failure(kind="error", message=str(error)[:300])
            yield RequestRecord(index=index, status="failed", sent_ms=0.0, failure=failure)
        else:
            yield _record(index, ttft, gaps, asked, got)


def _record(index: int, ttft_s: float, gaps_s: Sequence[float], prompt: int, output: int) -> RequestRecord:
    chunks = tuple(accumulate([ttft_s * 1e3, *(gap * 1e3 for gap in gaps_s)]))
    return RequestRecord(
        index=index,
        status="ok",
        sent_ms=0.0,
        ttft_ms=chunks[0],
        e2e_ms=chunks[-1],
        chunk_ms=chunks,
        prompt_tokens=prompt,
        output_tokens=output,
    )
