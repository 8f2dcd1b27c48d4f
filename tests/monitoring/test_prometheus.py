from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mcp_core.generation import EngineStats
from mcp_core.monitoring.latency import RecentLatency
from mcp_core.monitoring.prometheus import Histogram, WorkerMetrics
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


def test_a_requests_phases_come_from_the_engines_clock() -> None:
    metrics = WorkerMetrics("m", EngineStats)
    timing = {"queue_ms": 30.0, "prefill_ms": 70.0, "decode_ms": 90.0}
    metrics.observe_end("stop", 0.2, 120, 10, timing)
    metrics.observe_end("error", 0.1, 120, 0, timing)  # it got no token
    metrics.observe_end("abort", 0.1)  # no step began it
    found = samples(metrics)
    assert found["vllm:request_queue_time_seconds_sum", ""] == pytest.approx(0.06)
    assert found["vllm:request_prefill_time_seconds_count", ""] == 1
    assert found["vllm:request_decode_time_seconds_sum", ""] == pytest.approx(0.09)
    assert found["vllm:request_time_per_output_token_seconds_sum", ""] == pytest.approx(0.01)
    assert found["vllm:request_time_per_output_token_seconds_bucket", "0.01"] == 1  # a bound counts what equals it
    assert found["vllm:request_prompt_tokens_count", ""] == 2
    assert found["vllm:request_generation_tokens_sum", ""] == 10
    assert found["vllm:e2e_request_latency_seconds_count", ""] == 3
    assert metrics.latency() == RecentLatency(1, 100.0, 100.0, 10.0, 10.0)


def test_a_reply_of_one_token_has_no_time_per_token() -> None:
    metrics = WorkerMetrics("m", EngineStats)
    metrics.observe_end("length", 0.1, 5, 1, {"queue_ms": 0.0, "prefill_ms": 100.0, "decode_ms": 0.0})
    assert samples(metrics)["vllm:request_time_per_output_token_seconds_count", ""] == 0
    assert metrics.latency() == RecentLatency(1, 100.0, 100.0)


def test_our_histogram_is_the_client_librarys() -> None:
    from prometheus_client import CollectorRegistry
    from prometheus_client import Histogram as Theirs

    bounds = (0.1, 1, 2.5)
    registry = CollectorRegistry()
    theirs = Theirs("x", "about", ("model_name",), buckets=bounds, registry=registry).labels("m")
    ours = Histogram("x", "about", bounds)
    for value in (0.05, 0.1, 0.7, 1, 1.0001, 2.5, 9):
        theirs.observe(value)
        ours.observe(value)
    (expected,) = registry.collect()
    wanted = [(each.name, each.labels, each.value) for each in expected.samples if "created" not in each.name]
    assert [(each.name, each.labels, each.value) for each in ours.family("m").samples] == wanted


def test_names_are_those_of_vllm_where_they_say_so() -> None:
    """Of vLLM's documentation (usage/metrics, design/metrics)."""
    vllm = {
        *(
            "num_requests_running",
            "num_requests_waiting",
            "kv_cache_usage_perc",
            "prompt_tokens",
            "generation_tokens",
        ),
        *("prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "request_success"),
        *("time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds"),
        *("e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds"),
        *("request_decode_time_seconds", "request_prompt_tokens", "request_generation_tokens"),
        *("spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens"),
    }
    text = WorkerMetrics("m", EngineStats).render().decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {name.removeprefix("vllm:") for name in names if name.startswith("vllm:")} == vllm
    assert "process_resident_memory_bytes" in names


def test_memory_that_was_not_measured_has_no_line() -> None:
    found = samples(WorkerMetrics("m", EngineStats, lambda: Memory(weights_bytes=5)))
    assert found["mcp:weights_bytes", ""] == 5
    assert ("mcp:baseline_bytes", "") not in found


def test_two_workers_in_one_process_do_not_share_counters() -> None:
    first, second = WorkerMetrics("m", EngineStats), WorkerMetrics("m", EngineStats)
    first.observe_gap(0.1)
    assert samples(second)["vllm:inter_token_latency_seconds_count", ""] == 0


def test_what_preempted_requests_have_on_the_host_is_told() -> None:
    stats = EngineStats(
        kv_host_bytes=7, kv_host_limit_bytes=9, kv_host_kept_total=3, kv_host_returned_total=2, preemptions_total=4
    )
    found = samples(WorkerMetrics("m", lambda: stats))
    names = ("mcp:kv_host_bytes", "mcp:kv_host_limit_bytes", "mcp:kv_host_kept_total", "mcp:kv_host_returned_total")
    assert [found[name, ""] for name in names] == [7, 9, 3, 2]
