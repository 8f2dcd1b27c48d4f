from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from mcp_core.generation import EngineStats
from mcp_core.monitoring.prometheus import WorkerMetrics
from mcp_core.results import Memory


def samples(metrics: WorkerMetrics) -> dict[tuple[str, str], float]:
    """Value by name and, where there is one, bucket or reason."""
    return {
        (sample.name, sample.labels.get("le", sample.labels.get("finished_reason", ""))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_what_the_engine_holds_is_asked_at_every_scrape() -> None:
    stats = EngineStats(running=1, queued=2, kv_tokens=25, kv_capacity_tokens=100, prompt_tokens_total=7)
    metrics = WorkerMetrics("m", lambda: stats)
    assert samples(metrics)["vllm:num_requests_running", ""] == 1
    assert samples(metrics)["vllm:num_requests_waiting", ""] == 2
    assert samples(metrics)["vllm:kv_cache_usage_perc", ""] == 0.25
    assert samples(metrics)["vllm:prompt_tokens_total", ""] == 7
    stats = EngineStats(prompt_tokens_total=9)
    assert samples(metrics)["vllm:prompt_tokens_total", ""] == 9
    assert samples(metrics)["vllm:kv_cache_usage_perc", ""] == 0


def test_latencies_land_in_their_buckets() -> None:
    metrics = WorkerMetrics("m", EngineStats)
    for gap_s in (0.004, 0.02, 0.02):
        metrics.observe_gap(gap_s)
    metrics.observe_first_token(0.3)
    metrics.observe_end("abort", 3.0)
    found = samples(metrics)
    assert found["vllm:inter_token_latency_seconds_bucket", "0.005"] == 1
    assert found["vllm:inter_token_latency_seconds_bucket", "0.025"] == 3
    assert found["vllm:time_to_first_token_seconds_sum", ""] == 0.3
    assert found["vllm:e2e_request_latency_seconds_count", ""] == 1
    assert found["vllm:request_success_total", "abort"] == 1
    assert found["vllm:request_success_total", "stop"] == 0


def test_memory_that_was_not_measured_has_no_line() -> None:
    found = samples(WorkerMetrics("m", EngineStats, lambda: Memory(weights_bytes=5)))
    assert found["mcp:weights_bytes", ""] == 5
    assert ("mcp:baseline_bytes", "") not in found


def test_two_workers_in_one_process_do_not_share_counters() -> None:
    first, second = WorkerMetrics("m", EngineStats), WorkerMetrics("m", EngineStats)
    first.observe_gap(0.1)
    assert samples(second)["vllm:inter_token_latency_seconds_count", ""] == 0
