"""How a Run is shown in a terminal: as a page of its own, or as a row among others.

This file does not know where the Run comes from.
"""

from __future__ import annotations

from collections.abc import Iterator

from mcp_core.commands.fidelity_table import headline
from mcp_core.commands.output import say, size, table
from mcp_core.decision.facts import configuration_name
from mcp_core.decision.remarks import Remarks
from mcp_core.evaluation.conditions import remarks
from mcp_core.evaluation.metrics import MIN_REQUESTS_P95, MIN_REQUESTS_P99
from mcp_core.models.correction import error_of
from mcp_core.recipe import Recipe
from mcp_core.results import Measurement, Quantiles, Run

__all__ = ["HEADING", "remark_lines", "row_of", "scheme_words", "show"]

HEADING = (
    "RUN",
    "CREATED",
    "STATUS",
    "MODEL",
    "CONFIGURATION",
    "SCHEME",
    "WORKLOAD",
    "TTFT p50",
    "TPOT p50",
    "THROUGHPUT",
    "TAGS",
)


def row_of(run: Run, tags: str = "", *, stale: bool = False) -> tuple[str, ...]:
    """The Run under HEADING."""
    measured = run.measurement
    return (
        run.id,
        f"{run.created.astimezone():%Y-%m-%d %H:%M}",
        f"{run.status}, stale" if stale else run.status,
        run.recipe.model.id,
        configuration_name(run.recipe),
        scheme_words(run.recipe),
        run.workload.name,
        _figure(measured.ttft_ms.p50 if measured else None, "ms"),
        _figure(measured.tpot_ms.p50 if measured else None, "ms"),
        _figure(measured.output_tok_s if measured else None, "tok/s"),
        tags,
    )


def scheme_words(recipe: Recipe) -> str:
    """The scheme's name; for none "unquantized", or "as stored" of a checkpoint, which may come quantized. Of a
    server elsewhere nothing is known."""
    scheme = recipe.quantization.scheme
    if recipe.model.source == "endpoint":
        return "-"
    return recipe.unquantized_words if scheme == "none" else scheme


def settings_words(recipe: Recipe) -> str:
    """How a model is served: as "fp32, unquantized, cpu, transformers"."""
    if recipe.model.source == "endpoint":
        return "settings not known"
    return f"{recipe.dtype}, {scheme_words(recipe)}, {recipe.device}, {recipe.engine}"


def remark_lines(remarks: Remarks) -> list[str]:
    """What people said of a Run."""
    tags = [f"tags: {', '.join(remarks.tags)}"] if remarks.tags else []
    return [*tags, *([f"note: {remarks.note}"] if remarks.note else [])]


def show(run: Run) -> None:
    """The whole Run for people."""
    recipe = run.recipe
    say(f"Run {run.id}: {run.status}")
    say(f"{recipe.model.id}, {settings_words(recipe)}")
    say(f"configuration: {configuration_name(recipe)}")
    say(f"{run.workload.name}: {run.load_words}")
    if run.failure:
        say(f"{run.failure.kind}: {run.failure.message}")
    if run.measurement:
        say("")
        _show_measurement(run.measurement)
    if run.memory:
        parts = {"weights": run.memory.weights_bytes, "peak": run.memory.peak_bytes}
        parts["process peak"] = run.memory.process_peak_bytes
        say(f"memory: {', '.join(f'{name} {size(count)}' for name, count in parts.items())}")
    if (error := error_of(run)) is not None:
        figures = f"predicted {size(error.predicted_bytes)}, measured {size(error.measured_bytes)}"
        say(f"peak memory: {figures} ({error.share:+.1%})")
    if run.energy_j_per_token is not None:
        say(f"energy: {run.energy_j_per_token:.3f} J per output token")
    if run.fidelity is not None:
        say(headline(run.fidelity))
    for line in _caveats(run):
        say(line)
    if not run.comparable.ok:
        say(f"not comparable: {'; '.join(run.comparable.reasons)}")


def _caveats(run: Run) -> Iterator[str]:
    """What to bear in mind of a Run that may be compared all the same."""
    yield from remarks(run.conditions)
    yield from (f"not carried over: {line}" for line in (run.effective.not_carried if run.effective else ()))
    yield from (run.imported.notes if run.imported else ())


def _show_measurement(measured: Measurement) -> None:
    latencies = {"TTFT": measured.ttft_ms, "TPOT": measured.tpot_ms, "ITL": measured.itl_ms, "E2E": measured.e2e_ms}
    if measured.first_answer_ms:
        latencies["answer"] = measured.first_answer_ms
    table([("ms", "mean", "p50", "p90", "p95", "p99", "max", "n"), *(_cells(*each) for each in latencies.items())])
    say("")
    say(
        f"requests: {measured.completed} of {measured.requests} completed, {measured.failed} failed, "
        f"{measured.cancelled} cancelled, in {measured.duration_s:.1f} s"
    )
    say(
        f"throughput: {_figure(measured.output_tok_s, 'output tok/s')}, "
        f"{_figure(measured.total_tok_s, 'tok/s in all')}, {_figure(measured.requests_s, 'requests/s')}"
    )
    if measured.late_p99_ms is not None:
        say(f"sent {_figure(measured.late_p99_ms, 'ms')} after they were due (p99)")


def _cells(name: str, figures: Quantiles) -> tuple[str, ...]:
    p95 = _high(figures.p95, figures.n, MIN_REQUESTS_P95)
    p99 = _high(figures.p99, figures.n, MIN_REQUESTS_P99)
    plain = (figures.mean, figures.p50, figures.p90)
    return (name, *(_figure(value) for value in plain), p95, p99, _figure(figures.max), str(figures.n))


def _high(value: float | None, n: int, needed: int) -> str:
    return "too few" if value is None and 0 < n < needed else _figure(value)


def _figure(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:.{1 if value >= 10 else 2}f} {unit}".strip()
