"""Writes dashboard.json beside this file: ``python deploy/grafana/make_dashboard.py``.

Panels on ``vllm:`` names fit a vLLM server as well; those on ``mcp:`` are this project's workers' own. Needs
grafana-foundation-sdk (the dev extra). tests/serving/test_scraped.py asks a real Prometheus for every expression
and holds the kept file to what this makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

PATH = Path(__file__).with_name("dashboard.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WORKER = '{job=~"$job", model_name=~"$model_name"}'
BY = "by (model_name, instance)"
WIDTH, STAT_WIDTH, HEIGHT = 8, 4, 8

Query = tuple[str, str]


@dataclass(frozen=True)
class Panel:
    """Title, what it means, Grafana's unit, and PromQL with a legend each. A figure is one number."""

    title: str
    about: str
    unit: str
    queries: tuple[Query, ...]
    figure: bool = False


def rate(name: str) -> str:
    """Per second, of one worker."""
    return f"sum {BY} (rate({name}{WORKER}[$__rate_interval]))"


def quantiles(name: str, *shares: float) -> tuple[Query, ...]:
    """Quantiles of a histogram, named p50 and so on."""
    summed = f"sum by (le, model_name, instance) (rate({name}_bucket{WORKER}[$__rate_interval]))"
    return tuple(
        (f"histogram_quantile({share:g}, {summed})", f"p{share * 100:g} {{{{model_name}}}}") for share in shares
    )


def mean(name: str) -> str:
    """Of a histogram."""
    return f"{rate(name + '_sum')} / {rate(name + '_count')}"


def share(part: str, whole: str) -> str:
    """Of two counters; nothing to have a share of is 0."""
    return f"{rate(part)} / clamp_min({rate(whole)}, 1e-9)"


LEGEND = "{{model_name}}"
ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        Panel("Workers up", "Of those that Prometheus scrapes.", "short", (('sum(up{job=~"$job"})', "up"),), True),
        Panel(
            "Running",
            "Requests in prefill or decoding.",
            "short",
            ((f"sum(vllm:num_requests_running{WORKER})", ""),),
            True,
        ),
        Panel(
            "Waiting", "Requests in the queue.", "short", ((f"sum(vllm:num_requests_waiting{WORKER})", ""),), True
        ),
        Panel(
            "Output",
            "Tokens generated per second, all workers.",
            "short",
            ((f"sum(rate(vllm:generation_tokens_total{WORKER}[$__rate_interval]))", ""),),
            True,
        ),
        Panel(
            "TTFT p95",
            "95 % of requests had their first token within this.",
            "s",
            (
                (
                    "histogram_quantile(0.95, sum by (le) "
                    f"(rate(vllm:time_to_first_token_seconds_bucket{WORKER}[$__rate_interval])))",
                    "",
                ),
            ),
            True,
        ),
        Panel(
            "KV cache",
            "Share in use; 1 is full.",
            "percentunit",
            ((f"max(vllm:kv_cache_usage_perc{WORKER})", ""),),
            True,
        ),
    ),
    "Latency": (
        Panel(
            "Time to first token",
            "Request accepted to first token, queue included.",
            "s",
            quantiles("vllm:time_to_first_token_seconds", 0.5, 0.95, 0.99),
        ),
        Panel(
            "Time per output token",
            "Mean gap between the tokens of one request.",
            "s",
            quantiles("vllm:request_time_per_output_token_seconds", 0.5, 0.95, 0.99),
        ),
        Panel(
            "Gap between tokens",
            "Every gap of every request: a long one is a reply that stutters.",
            "s",
            quantiles("vllm:inter_token_latency_seconds", 0.5, 0.99),
        ),
        Panel(
            "Whole request",
            "Request accepted to its end.",
            "s",
            quantiles("vllm:e2e_request_latency_seconds", 0.5, 0.95, 0.99),
        ),
        Panel(
            "Queue time", "Accepted to first step.", "s", quantiles("vllm:request_queue_time_seconds", 0.5, 0.95)
        ),
        Panel(
            "Where a request's time goes",
            "Means: waiting, computing the prompt, generating.",
            "s",
            tuple(
                (mean(f"vllm:request_{phase}_time_seconds"), f"{phase} {LEGEND}")
                for phase in ("queue", "prefill", "decode")
            ),
        ),
    ),
    "Load": (
        Panel(
            "Requests",
            "In the engine and in its queue; batch is the sequences of the newest step.",
            "short",
            (
                (f"vllm:num_requests_running{WORKER}", f"running {LEGEND}"),
                (f"vllm:num_requests_waiting{WORKER}", f"waiting {LEGEND}"),
                (f"mcp:batch_size{WORKER}", f"batch {LEGEND}"),
            ),
        ),
        Panel(
            "Tokens per second",
            "Generated, and of prompts computed.",
            "short",
            (
                (rate("vllm:generation_tokens_total"), f"output {LEGEND}"),
                (rate("vllm:prompt_tokens_total"), f"prompt {LEGEND}"),
            ),
        ),
        Panel(
            "Requests ended per second",
            "stop and length ended well; abort: the client went; error: a failure.",
            "reqps",
            (
                (
                    "sum by (model_name, instance, finished_reason) "
                    f"(rate(vllm:request_success_total{WORKER}[$__rate_interval]))",
                    "{{finished_reason}} {{model_name}}",
                ),
            ),
        ),
        Panel(
            "Length of requests",
            "Mean tokens of prompts and of replies.",
            "short",
            (
                (mean("vllm:request_prompt_tokens"), f"prompt {LEGEND}"),
                (mean("vllm:request_generation_tokens"), f"reply {LEGEND}"),
            ),
        ),
    ),
    "Caches": (
        Panel(
            "KV cache in use",
            "1 is full: then requests wait or are preempted.",
            "percentunit",
            ((f"vllm:kv_cache_usage_perc{WORKER}", LEGEND),),
        ),
        Panel(
            "KV pages",
            "Used by running requests, kept for their prefix, and all there are. 0 in modes without a pool.",
            "short",
            tuple((f"mcp:kv_pages_{name}{WORKER}", f"{name} {LEGEND}") for name in ("used", "kept", "total")),
        ),
        Panel(
            "Evictions and preemptions",
            "Kept pages given up for room; running requests that lost theirs. Per second.",
            "short",
            (
                (rate("mcp:kv_evictions_total"), f"evictions {LEGEND}"),
                (rate("vllm:num_preemptions_total"), f"preemptions {LEGEND}"),
            ),
        ),
        Panel(
            "Prefix cache hits",
            "Share of prompt tokens that were known already.",
            "percentunit",
            ((share("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"), LEGEND),),
        ),
        Panel(
            "Guesses accepted",
            "Share of speculative tokens that the model would have chosen itself; 0 without speculation.",
            "percentunit",
            (
                (
                    share("vllm:spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_draft_tokens_total"),
                    LEGEND,
                ),
            ),
        ),
    ),
    "Worker process": (
        Panel(
            "Memory",
            "Resident, of the worker's process on its host; weights are what the loaded tensors occupy.",
            "bytes",
            (
                ('process_resident_memory_bytes{job=~"$job"}', "resident {{instance}}"),
                (f"mcp:weights_bytes{WORKER}", f"weights {LEGEND}"),
            ),
        ),
        Panel(
            "CPU",
            "Cores that the worker's process keeps busy.",
            "short",
            (('rate(process_cpu_seconds_total{job=~"$job"}[$__rate_interval])', "{{instance}}"),),
        ),
        Panel(
            "Busy with",
            "Share of time in steps that prefilled, and in steps that only decoded; the rest is idle.",
            "percentunit",
            (
                (rate("mcp:prefill_seconds_total"), f"prefill {LEGEND}"),
                (rate("mcp:decode_seconds_total"), f"decode {LEGEND}"),
            ),
        ),
    ),
}


def make() -> str:
    """The dashboard as JSON text."""
    built = (
        dashboard.Dashboard("MCP workers")
        .uid("mcp-workers")
        .tags(["mcp", "llm"])
        .description("Speed, latency, queue and caches of LLM workers. Alert rules: deploy/prometheus/alerts.yml.")
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .editable()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_choice("job", "Job", "label_values(vllm:num_requests_running, job)"))
        .with_variable(_choice("model_name", "Model", "label_values(vllm:num_requests_running, model_name)"))
    )
    for title, panels in ROWS.items():
        built = built.with_row(dashboard.Row(title))
        for panel in panels:
            built = built.with_panel(_panel(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel:
    built = stat.Panel() if panel.figure else timeseries.Panel().fill_opacity(8).min(0)
    built = built.title(panel.title).description(panel.about).unit(panel.unit).datasource(SOURCE)
    built = built.height(4 if panel.figure else HEIGHT).span(STAT_WIDTH if panel.figure else WIDTH)
    for target in _targets(panel):
        built = built.with_target(target)
    return built


def _targets(panel: Panel) -> Iterator[prometheus.Dataquery]:
    for position, (expression, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + position))
        yield query.instant() if panel.figure else query.range()


if __name__ == "__main__":
    PATH.write_text(make())
    print(PATH)
