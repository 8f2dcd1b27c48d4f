"""A worker's metrics in Prometheus' text form, under vLLM's names where the meaning is vLLM's.

``vllm:`` is kept as the prefix of those, so that dashboards and alerts written for vLLM (and autoscalers that watch
it) read a worker too; what vLLM does not count is ``mcp:``. docs/monitoring.md lists them all. This file does not
know how requests are served; it is told (``observe_*``) or asks (``stats``, ``memory``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mcp_core.generation import EngineStats
from mcp_core.monitoring.latency import LatencyWindow, RecentLatency
from mcp_core.results import Memory

__all__ = ["CONTENT_TYPE", "Histogram", "WorkerMetrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# vLLM's own bounds (vllm/v1/metrics/loggers.py), so that its queries give comparable quantiles.
_TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
_ITL_S = (
    # The first three are not vLLM's: a small model decodes faster than its 10 ms.
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_PHASE_S = (0.001, 0.005, 0.01, 0.05, 0.1, *_REQUEST_S)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)

_REASONS = ("stop", "length", "abort", "error")


class Histogram:
    """Counts by bucket. No lock, unlike the client library's: a gap is observed for every token.

    ``observe`` and ``family`` are for one thread, a worker's event loop.
    """

    def __init__(self, name: str, about: str, bounds: Sequence[float]) -> None:
        self.name, self.about = name, about
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, model_name: str) -> Metric:
        """As Prometheus wants it: each bucket counts what is not above its bound."""
        family = HistogramMetricFamily(self.name, self.about, labels=("model_name",))
        buckets, below = [], 0
        for bound, count in zip((*map(float, self._bounds), float("inf")), self._counts, strict=True):
            below += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(below)))
        family.add_metric((model_name,), buckets, self._sum)
        return family


class WorkerMetrics:
    """Counters and histograms of one worker, all with the label ``model_name``. For its event loop's thread."""

    def __init__(
        self, model_name: str, stats: Callable[[], EngineStats], memory: Callable[[], Memory] | None = None
    ) -> None:
        self._ttft = Histogram("vllm:time_to_first_token_seconds", "Request accepted to first token.", _TTFT_S)
        self._itl = Histogram("vllm:inter_token_latency_seconds", "Gap between two tokens of a request.", _ITL_S)
        self._tpot = Histogram(
            "vllm:request_time_per_output_token_seconds", "Mean gap between the tokens of one request.", _ITL_S
        )
        self._e2e = Histogram("vllm:e2e_request_latency_seconds", "Request accepted to its end.", _REQUEST_S)
        self._queue = Histogram("vllm:request_queue_time_seconds", "Accepted to first step.", _PHASE_S)
        self._prefill = Histogram("vllm:request_prefill_time_seconds", "First step to first token.", _PHASE_S)
        self._decode = Histogram("vllm:request_decode_time_seconds", "First token to last.", _PHASE_S)
        self._prompt = Histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self._output = Histogram("vllm:request_generation_tokens", "Tokens generated for a request.", _TOKENS)
        self._ended = dict.fromkeys(_REASONS, 0)
        self._recent = LatencyWindow()
        told = _ToldCollector(model_name, self._histograms, self._ended)
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(model_name, stats, memory))
        self._registry.register(told)
        ProcessCollector(registry=self._registry)

    def observe_first_token(self, seconds: float) -> None:
        """Request accepted to first token."""
        self._ttft.observe(seconds)

    def observe_gap(self, seconds: float) -> None:
        """Between two tokens of one request."""
        self._itl.observe(seconds)

    def observe_end(
        self,
        reason: str,
        seconds: float,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
        timing: Mapping[str, float] | None = None,
    ) -> None:
        """A request's end: stop, length, abort or error, and how long it took.

        ``timing`` is the engine's own, ms (``TokenEvent.timing``); None for a request that no step began.
        """
        self._ended[reason] += 1
        self._e2e.observe(seconds)
        if timing is None:
            return
        self._prompt.observe(prompt_tokens)
        self._output.observe(output_tokens)
        self._observe_phases(timing, output_tokens)

    def latency(self) -> RecentLatency:
        """Of the requests that ended in the last minute, by the engine's clock."""
        return self._recent.read()

    def render(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)

    def _observe_phases(self, timing: Mapping[str, float], output_tokens: int) -> None:
        queue_ms, prefill_ms, decode_ms = (timing[f"{phase}_ms"] for phase in ("queue", "prefill", "decode"))
        self._queue.observe(queue_ms / 1e3)
        if not output_tokens:
            return
        self._prefill.observe(prefill_ms / 1e3)
        self._decode.observe(decode_ms / 1e3)
        tpot_ms = decode_ms / (output_tokens - 1) if output_tokens > 1 else None
        if tpot_ms is not None:
            self._tpot.observe(tpot_ms / 1e3)
        self._recent.add(queue_ms + prefill_ms, tpot_ms)

    @property
    def _histograms(self) -> tuple[Histogram, ...]:
        timed = (self._ttft, self._itl, self._tpot, self._e2e, self._queue, self._prefill, self._decode)
        return (*timed, self._prompt, self._output)


class _ToldCollector(Collector):
    """What the worker was told of its requests."""

    def __init__(self, model_name: str, histograms: Sequence[Histogram], ended: Mapping[str, int]) -> None:
        self._model_name = model_name
        self._histograms = tuple(histograms)
        self._ended = ended

    def collect(self) -> Iterator[Metric]:
        """Histograms, and how requests ended."""
        for histogram in self._histograms:
            yield histogram.family(self._model_name)
        success = CounterMetricFamily(
            "vllm:request_success",
            "Requests ended, by reason: stop, length, abort, error.",
            labels=("model_name", "finished_reason"),
        )
        for reason, count in self._ended.items():
            success.add_metric((self._model_name, reason), count)
        yield success


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
        yield from self._now(stats)
        yield from self._totals(stats)
        yield from self._pages(stats)
        if self._memory is not None:
            yield from self._memory_gauges(self._memory())

    def _now(self, stats: EngineStats) -> Iterator[Metric]:
        used = stats.kv_tokens / stats.kv_capacity_tokens if stats.kv_capacity_tokens else 0.0
        yield self._gauge("vllm:num_requests_running", "Requests in decoding or prefill.", stats.running)
        yield self._gauge("vllm:num_requests_waiting", "Requests in the queue.", stats.queued)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 is full.", used)
        yield self._gauge("mcp:max_requests", "Requests held at most, running and waiting.", stats.max_requests)
        yield self._gauge("mcp:batch_size", "Sequences in the newest step.", stats.batch_size)

    def _totals(self, stats: EngineStats) -> Iterator[Metric]:
        yield self._counter("vllm:prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens_total)
        yield self._counter("vllm:generation_tokens", "Tokens generated.", stats.output_tokens_total)
        # vLLM counts the cache's queries and hits in tokens too.
        known = stats.cached_prompt_tokens_total
        asked = stats.prompt_tokens_total + known
        yield self._counter("vllm:prefix_cache_queries", "Prompt tokens asked of the prefix cache.", asked)
        yield self._counter("vllm:prefix_cache_hits", "Prompt tokens found there.", known)
        yield self._counter("vllm:num_preemptions", "Sequences that made room for others.", stats.preemptions_total)
        drafted, accepted = stats.drafted_tokens_total, stats.accepted_tokens_total
        yield self._counter("vllm:spec_decode_num_draft_tokens", "Tokens guessed.", drafted)
        yield self._counter("vllm:spec_decode_num_accepted_tokens", "Guesses that were right.", accepted)
        yield self._counter("mcp:prefill_seconds", "Time in steps that prefilled.", stats.prefill_s_total)
        yield self._counter("mcp:decode_seconds", "Time in steps that only decoded.", stats.decode_s_total)

    def _pages(self, stats: EngineStats) -> Iterator[Metric]:
        """The paged pool; 0 where there is none."""
        yield self._gauge("mcp:kv_pages_total", "Pages of the KV pool.", stats.kv_pages_total)
        yield self._gauge("mcp:kv_pages_used", "Pages that sequences hold.", stats.kv_pages_used)
        yield self._gauge("mcp:kv_pages_kept", "Unused pages whose prefix is remembered.", stats.kv_pages_kept)
        yield self._counter("mcp:kv_evictions", "Remembered pages given up for room.", stats.kv_evictions_total)
        yield self._gauge("mcp:kv_host_bytes", "Host memory with preempted requests' pages.", stats.kv_host_bytes)
        yield self._gauge("mcp:kv_host_limit_bytes", "The most that it may take.", stats.kv_host_limit_bytes)
        kept, returned = stats.kv_host_kept_total, stats.kv_host_returned_total
        yield self._counter("mcp:kv_host_kept", "Preempted requests whose pages were copied there.", kept)
        yield self._counter("mcp:kv_host_returned", "Those whose pages were copied back.", returned)

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
