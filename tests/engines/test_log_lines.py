from __future__ import annotations

import pytest

from mcp_core.engines.counters import engine_stats
from mcp_core.engines.log_lines import Learned, cause_of_end, stage_of
from mcp_core.errors import LoadFailed, OutOfMemory

# Lines of vLLM 0.23 and SGLang 0.5.23, as their sources write them.
VLLM = (
    "(APIServer pid=8) INFO 11-25 10:00:00 [cuda.py:379] Using FLASH_ATTN attention backend out of potential "
    "backends: ['FLASH_ATTN', 'FLASHINFER'].",
    "(EngineCore_0 pid=9) INFO 11-25 10:00:01 [gpu_model_runner.py:5188] Model loading took 12.55 GiB memory and "
    "4.1 seconds",
    "(EngineCore_0 pid=9) INFO 11-25 10:00:02 [kv_cache_utils.py:1744] GPU KV cache size: 123,456 tokens",
)
SGLANG = (
    "[2026-11-25 10:00:01] Load weight end. elapsed=1.2 s, type=LlamaForCausalLM, avail mem=60.1 GB, "
    "mem usage=12.55 GB.",
    "[2026-11-25 10:00:02] max_total_num_tokens=123456, chunked_prefill_size=8192, context_len=4096",
)


@pytest.mark.parametrize("lines", [VLLM, SGLANG], ids=["vllm", "sglang"])
def test_sizes_are_read_from_the_log(lines: tuple[str, ...]) -> None:
    learned = Learned()
    for line in lines:
        learned = learned.after(line)
    assert learned.weights_bytes == round(12.55 * 1024**3)
    assert learned.kv_capacity_tokens == 123_456
    assert learned.attention == ("flash_attn" if lines is VLLM else None)


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("INFO [gpu_model_runner.py:5093] Starting to load model /m...", "load"),
        ("Loading safetensors checkpoint shards:  50% Completed | 1/2", "load"),
        ("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  10%|", "warm-up"),
        ("INFO:     Application startup complete.", "check"),
        ("INFO 127.0.0.1 asked for something", None),
    ],
)
def test_stages(line: str, stage: str | None) -> None:
    found = stage_of(line)
    assert (found and found[0]) == stage


def test_the_cause_is_the_line_that_names_an_error_and_not_the_last() -> None:
    lines = (
        "Traceback (most recent call last):",
        "(EngineCore_0 pid=9) ERROR 11-25 10:00:02 [core.py:7] ValueError: The model's context is 1024.",
        "(APIServer pid=8) for more details see above",
    )
    cause = cause_of_end("vLLM", "exit code 1", lines)
    assert isinstance(cause, LoadFailed)
    assert "(exit code 1)" in cause.message
    assert cause.message.endswith("It said: ValueError: The model's context is 1024.")


@pytest.mark.parametrize(
    "line",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "ValueError: No available memory for the cache blocks. Try increasing gpu_memory_utilization.",
        "ValueError: Free memory on device cuda:0 (3.0/79.1 GiB) on startup is less than desired",
    ],
)
def test_lack_of_memory_is_told_apart(line: str) -> None:
    cause = cause_of_end("vLLM", "exit code 1", (line, "RuntimeError: Engine core initialization failed."))
    assert isinstance(cause, OutOfMemory)
    assert line in cause.message


def test_nothing_said() -> None:
    assert "It said: nothing" in cause_of_end("SGLang", "signal SIGKILL", ()).message


def test_counters_by_known_quantities() -> None:
    page = (
        "# TYPE vllm:num_requests_running gauge\n"
        'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3.0\n'
        "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting 7\n"
        "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc 0.25\n"
        '# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1\n'
        "# TYPE vllm:request_success counter\n"
        'vllm:request_success_total{finished_reason="stop"} 5\n'
        'vllm:request_success_total{finished_reason="length"} 4\n'
        'vllm:request_success_total{finished_reason="abort"} 2\n'
        "# TYPE vllm:prefix_cache_hits counter\nvllm:prefix_cache_hits_total 640\n"
    )
    stats = engine_stats("vllm", page, 48, 0)
    assert (stats.running, stats.queued, stats.max_requests) == (5, 7, 48)
    assert (stats.kv_capacity_tokens, stats.kv_tokens, stats.kv_pages_used) == (1600, 400, 25)
    assert (stats.finished_total, stats.cancelled_total, stats.cached_prompt_tokens_total) == (9, 2, 640)
    assert stats.prefill_s_total == stats.decode_s_total == 0  # sums over requests are no busy time


def test_a_page_without_our_counters_counts_nothing() -> None:
    assert engine_stats("sglang", "", 8, 99).kv_capacity_tokens == 99
