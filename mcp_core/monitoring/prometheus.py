"""A worker's metrics in Prometheus' text form, under vLLM's names where the meaning is vLLM's.

This file does not know how requests are served; it is told (``observe_*``) or asks (``stats``, ``memory``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mcp_core.generation import EngineStats
from mcp_core.results import Memory

__all__ = ["CONTENT_TYPE", "WorkerMetrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_ITL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_E2E_BUCKETS_S = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)


class WorkerMetrics:
    """Counters and histograms of one worker, all with the label ``model_name``."""

    def __init__(
        self, model_name: str, stats: Callable[[], EngineStats], memory: Callable[[], Memory] | None = None
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(model_name, stats, memory))
        label, value = ("model_name",), model_name
        self._ttft = Histogram(
            "vllm:time_to_first_token_seconds",
            "Request accepted to first token.",
            label,
            buckets=_TTFT_BUCKETS_S,
            registry=self._registry,
        ).labels(value)
        self._itl = Histogram(
            "vllm:inter_token_latency_seconds",
            "Gap between two tokens of a request.",
            label,
            buckets=_ITL_BUCKETS_S,
            registry=self._registry,
        ).labels(value)
        self._e2e = Histogram(
            "vllm:e2e_request_latency_seconds",
            "Request accepted to its end.",
            label,
            buckets=_E2E_BUCKETS_S,
            registry=self._registry,
        ).labels(value)
        success = Counter(
            "vllm:request_success",
            "Requests ended, by reason: stop, length, abort, error.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )
        self._ended = {reason: success.labels(value, reason) for reason in ("stop", "length", "abort", "error")}

    def observe_first_token(self, seconds: float) -> None:
        """Request accepted to first token."""
        self._ttft.observe(seconds)

    def observe_gap(self, seconds: float) -> None:
        """Between two tokens of one request."""
        self._itl.observe(seconds)

    def observe_end(self, reason: str, seconds: float) -> None:
        """A request's end: stop, length, abort or error, and how long it took."""
        self._ended[reason].inc()
        self._e2e.observe(seconds)

    def render(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Asks the engine and the process when it is scraped."""

    def __init__(
        self, model_name: str, stats: Callable[[], EngineStats], memory: Callable[[], Memory] | None
    ) -> None:
        self._model_name = model_name
        self._stats = stats
        self._memory = memory

    def collect(self) -> Iterator[Metric]:
        """One family per counter."""
        stats = self._stats()
        used = stats.kv_tokens / stats.kv_capacity_tokens if stats.kv_capacity_tokens else 0.0
        yield self._gauge("vllm:num_requests_running", "Requests in decoding or prefill.", stats.running)
        yield self._gauge("vllm:num_requests_waiting", "Requests in the queue.", stats.queued)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 is full.", used)
        yield self._counter("vllm:prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens_total)
        yield self._counter("vllm:generation_tokens", "Tokens generated.", stats.output_tokens_total)
        # vLLM counts the cache's queries and hits in tokens too.
        asked = stats.prompt_tokens_total + stats.cached_prompt_tokens_total
        yield self._counter("vllm:prefix_cache_queries", "Prompt tokens asked of the prefix cache.", asked)
        known = stats.cached_prompt_tokens_total
        yield self._counter("vllm:prefix_cache_hits", "Prompt tokens found there.", known)
        yield self._counter("vllm:num_preemptions", "Sequences that made room for others.", stats.preemptions_total)
        yield self._counter("vllm:spec_decode_num_draft_tokens", "Tokens guessed.", stats.drafted_tokens_total)
        yield self._counter(
            "vllm:spec_decode_num_accepted_tokens", "Guesses that were right.", stats.accepted_tokens_total
        )
        yield from self._pages(stats)
        if self._memory is not None:
            yield from self._memory_gauges(self._memory())

    def _pages(self, stats: EngineStats) -> Iterator[Metric]:
        """The paged pool, where there is one."""
        if not stats.kv_pages_total:
            return
        yield self._gauge("mcp:kv_pages_total", "Pages of the KV pool.", stats.kv_pages_total)
        yield self._gauge("mcp:kv_pages_used", "Pages that sequences hold.", stats.kv_pages_used)
        yield self._gauge("mcp:kv_pages_kept", "Unused pages whose prefix is remembered.", stats.kv_pages_kept)
        yield self._counter("mcp:kv_evictions", "Remembered pages given up for room.", stats.kv_evictions_total)

    def _memory_gauges(self, memory: Memory) -> Iterator[Metric]:
        for name, value in memory.model_dump().items():
            about = str(type(memory).model_fields[name].description or name.replace("_", " "))
            if value is not None:
                yield self._gauge(f"mcp:{name}", about, value)

    def _gauge(self, name: str, about: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, about, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family

    def _counter(self, name: str, about: str, value: float) -> Metric:
        family = CounterMetricFamily(name, about, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family
