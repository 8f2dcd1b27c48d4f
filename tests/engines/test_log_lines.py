from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

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
# Its second model runner, which dense models get, with a backend that the Recipe names.
VLLM_V2 = (
    "(EngineCore pid=9) INFO 11-25 10:00:00 [cuda.py:318] Using AttentionBackendEnum.FLASH_ATTN backend.",
    "(EngineCore pid=9) INFO 11-25 10:00:00 [flash_attn.py:636] Using FlashAttention version 3",
    "(EngineCore pid=9) INFO 11-25 10:00:01 [model_runner.py:319] Model loading took 12.55 GiB and 4.1 seconds",
    "(EngineCore pid=9) INFO 11-25 10:00:02 [kv_cache_utils.py:1744] GPU KV cache size: 123,456 tokens",
)
SGLANG = (
    "[2026-11-25 10:00:01] Load weight end. elapsed=1.2 s, type=LlamaForCausalLM, avail mem=60.1 GB, "
    "mem usage=12.55 GB.",
    "[2026-11-25 10:00:02] max_total_num_tokens=123456, chunked_prefill_size=8192, context_len=4096",
)


# What it writes without a GPU, a line of each kind: the process that dies, its own end, the one that waited for it.
ENGINE_CORE_DIES = (
    "(APIServer pid=8) WARNING 11-25 21:13:20 [system_utils.py:299] Found ulimit of 20000 and failed to "
    "automatically increase. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`.",
    "(EngineCore pid=9) ERROR 11-25 21:13:29 [core.py:1195] EngineCore failed to start.",
    "(EngineCore pid=9) ERROR 11-25 21:13:29 [core.py:1195] Traceback (most recent call last):",
    "(EngineCore pid=9) ERROR 11-25 21:13:29 [core.py:1195] {cause}",
    "(EngineCore pid=9) Process EngineCore:",
    "(EngineCore pid=9) {cause}",
    "(APIServer pid=8) Traceback (most recent call last):",
    "(APIServer pid=8)     raise RuntimeError(",
    "(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): "
    "{{'EngineCore': 1}}",
)


def learned_from(lines: Iterable[str]) -> Learned:
    return reduce(Learned.after, lines, Learned())


@pytest.mark.parametrize(
    ("lines", "attention"),
    [(VLLM, "flash_attn"), (VLLM_V2, "flash_attention_3"), (SGLANG, None)],
    ids=["vllm", "vllm-v2", "sglang"],
)
def test_sizes_are_read_from_the_log(lines: tuple[str, ...], attention: str | None) -> None:
    learned = learned_from(lines)
    assert learned.weights_bytes == round(12.55 * 1024**3)
    assert learned.kv_capacity_tokens == 123_456
    assert learned.attention == attention


def test_the_attention_is_the_models_and_not_its_drafts() -> None:
    other = "Using AttentionBackendEnum.FLEX_ATTENTION backend."
    assert learned_from((*VLLM_V2, other)).attention == "flash_attention_3"
    assert learned_from((other, *VLLM_V2)).attention == "flex_attention"


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("INFO [gpu_model_runner.py:5093] Starting to load model /m...", "load"),
        ("(EngineCore pid=9) INFO 11-25 10:00:00 [model_runner.py:298] Loading model from scratch...", "load"),
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
    "cause",
    [
        "AssertionError: DP adjusted local rank 0 is out of bounds.",
        "ModuleNotFoundError: No module named 'flashinfer'",  # vLLM's sampler, where nobody installed it
    ],
)
def test_an_error_that_points_at_another_is_not_the_cause(cause: str) -> None:
    lines = tuple(line.format(cause=cause) for line in ENGINE_CORE_DIES)
    assert cause_of_end("vLLM", "exit code 1", lines).message.endswith(f"It said: {cause}")


def test_where_nothing_else_is_named_the_last_line_is_said() -> None:
    warning, *_, pointing = ENGINE_CORE_DIES  # the core was killed, and could not say anything
    assert "Engine core initialization failed" in cause_of_end("vLLM", "exit code 1", (warning, pointing)).message


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
