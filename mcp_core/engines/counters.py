"""Another engine's Prometheus page as EngineStats, as far as it counts the same things.

Its prefill and decode times are sums over requests that ran at once, not busy time of the engine, so those stay 0.
This file does not know how the page is fetched.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from mcp_core.generation import EngineStats

__all__ = ["engine_stats"]


def engine_stats(engine: str, page: str, max_requests: int, kv_capacity_tokens: int) -> EngineStats:
    """Counters of ``vllm`` or ``sglang``. ``kv_capacity_tokens`` is what its log said, 0 when it did not."""
    samples = tuple(each for family in text_string_to_metric_families(page) for each in family.samples)
    return _READERS[engine](_Page(samples), max_requests, kv_capacity_tokens)


class _Page:
    def __init__(self, samples: tuple[Sample, ...]) -> None:
        self._samples = samples

    def total(self, name: str, **labels: str) -> float:
        """Sum over every sample of that name with these labels; 0 where there is none."""
        return sum(
            each.value for each in self._samples if each.name == name and labels.items() <= each.labels.items()
        )

    def label(self, name: str, label: str) -> int:
        """A number that is a label of an info metric; 0 where there is none."""
        texts = (each.labels.get(label, "") for each in self._samples if each.name == name)
        return next((int(text) for text in texts if text.isdigit()), 0)


def _vllm(page: _Page, max_requests: int, capacity: int) -> EngineStats:
    info = "vllm:cache_config_info"
    pages = page.label(info, "num_gpu_blocks")
    capacity = capacity or pages * page.label(info, "block_size")
    share = page.total("vllm:kv_cache_usage_perc")
    success = "vllm:request_success_total"
    cancelled, failed = (page.total(success, finished_reason=reason) for reason in ("abort", "error"))
    return EngineStats(
        running=int(page.total("vllm:num_requests_running")),
        queued=int(page.total("vllm:num_requests_waiting")),
        max_requests=max_requests,
        kv_tokens=round(share * capacity),
        kv_capacity_tokens=capacity,
        kv_pages_used=round(share * pages),
        kv_pages_total=pages,
        prompt_tokens_total=int(page.total("vllm:prompt_tokens_total")),
        output_tokens_total=int(page.total("vllm:generation_tokens_total")),
        finished_total=int(page.total(success) - cancelled - failed),
        cancelled_total=int(cancelled),
        failed_total=int(failed),
        cached_prompt_tokens_total=int(page.total("vllm:prefix_cache_hits_total")),
        preemptions_total=int(page.total("vllm:num_preemptions_total")),
        drafted_tokens_total=int(page.total("vllm:spec_decode_num_draft_tokens_total")),
        accepted_tokens_total=int(page.total("vllm:spec_decode_num_accepted_tokens_total")),
    )


def _sglang(page: _Page, max_requests: int, capacity: int) -> EngineStats:
    return EngineStats(
        running=int(page.total("sglang:num_running_reqs")),
        queued=int(page.total("sglang:num_queue_reqs")),
        max_requests=max_requests,
        kv_tokens=int(page.total("sglang:num_used_tokens")),
        kv_capacity_tokens=capacity,
        prompt_tokens_total=int(page.total("sglang:prompt_tokens_total")),
        output_tokens_total=int(page.total("sglang:generation_tokens_total")),
        finished_total=int(page.total("sglang:num_requests_total")),
        cached_prompt_tokens_total=int(page.total("sglang:cached_tokens_total")),
        preemptions_total=int(page.total("sglang:num_retracted_requests_total")),
    )


_READERS: dict[str, Callable[[_Page, int, int], EngineStats]] = {"vllm": _vllm, "sglang": _sglang}
