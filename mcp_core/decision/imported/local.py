"""Tools that time a model in their own process: optimum-benchmark and llama-bench. No server, no queue, no network.

optimum-benchmark's prefill is no TTFT: it is taken over as prefill time; TPOT is decode / (new tokens - 1).
llama-bench times a prompt (pp) and a reply (tg) apart, a row each; tg has no prompt, so TPOT is time / tokens.
Sources: optimum_benchmark/scenarios/inference, llama.cpp tools/llama-bench.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mcp_core.decision.imported.row import ImportedRow, count, number, part, rest, text, values_of, when
from mcp_core.results import Memory, Quantiles

__all__ = ["is_llama_bench", "is_optimum", "read_llama_bench", "read_optimum"]

_IN_PROCESS = "timed in the model's own process: no queue, no network; prefill is no TTFT"
_MB = 1_000_000
_PACKAGES = ("transformers", "accelerate", "optimum", "peft", "optimum_benchmark")


def is_optimum(document: Any) -> bool:
    """benchmark.json (config and report) or benchmark_report.json."""
    report = part(document, "report") or document
    return bool(part(report, "decode", "latency")) and bool(part(report, "prefill", "latency"))


def read_optimum(document: Mapping[str, Any]) -> Iterator[ImportedRow]:
    """One row a file; the batch is the users. Without its config, lengths are not known and there is no TPOT."""
    report, config = part(document, "report") or document, part(document, "config")
    shapes, generate = part(config, "scenario", "input_shapes"), part(config, "scenario", "generate_kwargs")
    batch, new = count(shapes, "batch_size") or 1, count(generate, "max_new_tokens")
    prefill, decode = _seconds(report, "prefill"), _seconds(report, "decode")
    tpot = _per_token(report, new)
    whole_s = ((prefill.mean or 0.0) + (decode.mean or 0.0)) / 1e3
    environment = part(config, "environment")
    yield ImportedRow(
        model=text(part(config, "backend"), "model") or text(config, "name") or "unknown model",
        engine="transformers" if text(part(config, "backend"), "name") == "pytorch" else "endpoint",
        completed=decode.n * batch,
        duration_s=whole_s * decode.n,
        users=batch,
        prompt_length=number(shapes, "sequence_length"),
        output_length=new or None,
        prompt_tokens=count(shapes, "sequence_length") * decode.n * batch,
        output_tokens=new * decode.n * batch,
        output_tok_s=new * batch / whole_s if new and whole_s else None,
        requests_s=batch / whole_s if whole_s else None,
        tpot_ms=tpot,
        prefill_ms=prefill,
        engine_tpot_ms=tpot.p50,
        memory=_memory(part(report, "decode", "memory")),
        load_s=number(part(report, "load_model", "latency"), "mean"),
        device=_gpu(environment, config),
        gpu=text(part(config, "backend"), "device") != "cpu",
        versions={name: found for name in _PACKAGES if (found := text(environment, f"{name}_version"))},
        notes=(_IN_PROCESS,),
        fields={"config": dict(config), "report": _without_values(report)},
    )


def is_llama_bench(document: Any) -> bool:
    """A list of tests, or one line of them."""
    first = document[0] if isinstance(document, list) and document else document
    return isinstance(first, Mapping) and {"avg_ts", "n_prompt", "n_gen"} <= first.keys()


def read_llama_bench(document: Any) -> Iterator[ImportedRow]:
    """One row a test."""
    for test in document if isinstance(document, list) else [document]:
        yield _test(test)


def _test(test: Mapping[str, Any]) -> ImportedRow:
    prompt, new, rate = count(test, "n_prompt"), count(test, "n_gen"), number(test, "avg_ts")
    times = values_of(test.get("samples_ns"), 1e-6) or Quantiles()
    tpot = values_of([each / new for each in test.get("samples_ns", ())], 1e-6) if new and not prompt else None
    name = "+".join(each for each in (f"pp{prompt}" if prompt else "", f"tg{new}" if new else "") if each)
    taken = ("avg_ts", "n_prompt", "n_gen", "samples_ns", "test_time", "model_filename", "build_commit")
    return ImportedRow(
        model=text(test, "model_type", "model_filename") or "unknown model",
        engine="llama.cpp",
        label=name,
        completed=times.n,
        duration_s=(times.mean or 0.0) * times.n / 1e3,
        prompt_length=prompt or None,
        output_length=new or None,
        prompt_tokens=prompt * times.n,
        output_tokens=new * times.n,
        output_tok_s=rate if new and not prompt else None,
        total_tok_s=rate,
        tpot_ms=tpot or Quantiles(),
        prefill_ms=times if prompt and not new else None,
        engine_tpot_ms=1e3 / rate if rate and new and not prompt else None,
        memory=Memory(weights_bytes=count(test, "model_size") or None),
        created=when(test.get("test_time")),
        device=text(test, "gpu_info", "cpu_info"),
        gpu=bool(text(test, "gpu_info")),
        versions={"llama.cpp": text(test, "build_commit")} if text(test, "build_commit") else {},
        notes=(_IN_PROCESS,),
        fields=rest(test, taken),
    )


def _seconds(report: Mapping[str, Any], name: str) -> Quantiles:
    latency = part(report, name, "latency")
    found = values_of(latency.get("values"), 1e3)
    if found is not None:
        return found
    mean, p50 = number(latency, "mean"), number(latency, "p50")
    return Quantiles(
        mean=None if mean is None else mean * 1e3, p50=None if p50 is None else p50 * 1e3, n=count(latency, "count")
    )


def _per_token(report: Mapping[str, Any], new: int) -> Quantiles:
    values = part(report, "decode", "latency").get("values")
    if new < 2 or not isinstance(values, Sequence):
        return Quantiles()
    return values_of(values, 1e3 / (new - 1)) or Quantiles()


def _memory(found: Mapping[str, Any]) -> Memory | None:
    if text(found, "unit") != "MB":
        return None
    sizes = {name: number(found, name) for name in ("max_ram", "max_allocated", "max_reserved")}
    bytes_of = {name: None if value is None else round(value * _MB) for name, value in sizes.items()}
    return Memory(
        process_peak_bytes=bytes_of["max_ram"],
        device_allocated_peak_bytes=bytes_of["max_allocated"],
        device_reserved_peak_bytes=bytes_of["max_reserved"],
    )


def _gpu(environment: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    if text(part(config, "backend"), "device") == "cpu":
        return text(environment, "cpu")
    names = environment.get("gpu")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else text(environment, "cpu")


def _without_values(report: Mapping[str, Any]) -> dict[str, Any]:
    """Single values are thousands; their statistics stay."""
    kept: dict[str, Any] = {}
    for name, phase in report.items():
        latency = rest(part(phase, "latency"), ("values",))
        kept[name] = {**phase, "latency": latency} if isinstance(phase, Mapping) and latency else phase
    return kept
