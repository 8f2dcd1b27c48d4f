"""Result files of other tools, cut to their aggregates; each says where its fields and figures come from.

Only optimum-benchmark's and llama-bench's are of real runs. AIPerf's and GuideLLM's have never been held against a
file that the tool wrote.
"""

from __future__ import annotations

from typing import Any

# Figures of a real run: github.com/DerekLiu35/huggingface-quantization-benchmarking-code,
# runs/llama_awq/benchmark.json (commit 063dcfb), single values of per_token and most of config left out.
OPTIMUM: dict[str, Any] = {
    "config": {
        "name": "llama_awq",
        "backend": {
            "name": "pytorch",
            "model": "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4",
            "device": "cuda",
            "quantization_scheme": "awq",
        },
        "scenario": {
            "name": "inference",
            "iterations": 10,
            "input_shapes": {"batch_size": 1, "sequence_length": 64},
            "generate_kwargs": {"max_new_tokens": 64, "min_new_tokens": 64},
        },
        "environment": {
            "cpu": " AMD EPYC 7742 64-Core Processor",
            "gpu": ["NVIDIA A100-SXM4-80GB"],
            "transformers_version": "4.47.1",
            "optimum_benchmark_version": "0.5.0",
        },
    },
    "report": {
        "load_model": {
            "latency": {"unit": "s", "values": [11.7544541015625], "count": 1, "mean": 11.7544541015625}
        },
        "prefill": {
            "latency": {
                "unit": "s",
                "values": [
                    0.032427230834960935,
                    0.03248134231567383,
                    0.032417022705078125,
                    0.032394977569580076,
                    0.03252195358276367,
                    0.032440448760986326,
                    0.032395904541015624,
                    0.032469631195068356,
                    0.03249615859985352,
                    0.03242943954467774,
                ],
                "count": 10,
                "mean": 0.03244741096496582,
                "p50": 0.03243494415283203,
            },
            "throughput": {"unit": "samples/s", "value": 30.819099899209892},
        },
        "decode": {
            "memory": {
                "unit": "MB",
                "max_ram": 1449.189376,
                "max_reserved": 7583.301632,
                "max_allocated": 6813.98784,
            },
            "latency": {
                "unit": "s",
                "values": [
                    1.457540771484375,
                    1.4597230224609374,
                    1.502826416015625,
                    1.4566082763671875,
                    1.4594002685546874,
                    1.4556002197265625,
                    1.4554534912109376,
                    1.45491796875,
                    1.4567940673828126,
                    1.4619544677734375,
                ],
                "count": 10,
                "mean": 1.4620818969726563,
                "p50": 1.4571674194335937,
            },
            "throughput": {"unit": "tokens/s", "value": 43.089241533217766},
        },
    },
}

# Figures of a real run: llama.cpp tools/llama-bench/README.md, "JSON" (build 8cf427ff).
_LLAMA = {
    "build_commit": "8cf427ff",
    "cpu_info": "AMD Ryzen 7 7800X3D 8-Core Processor",
    "gpu_info": "NVIDIA GeForce RTX 4080",
    "model_filename": "models/Qwen2.5-7B-Instruct-Q4_K_M.gguf",
    "model_type": "qwen2 7B Q4_K - Medium",
    "model_size": 4677120000,
    "n_threads": 8,
    "n_gpu_layers": 99,
}
LLAMA_BENCH: list[dict[str, Any]] = [
    _LLAMA
    | {"n_prompt": 512, "n_gen": 0, "test_time": "2025-04-24T11:58:50Z", "avg_ns": 72135640, "avg_ts": 7100.002165}
    | {"samples_ns": [74601900, 71632900, 71745200, 71952700, 70745500]},
    _LLAMA
    | {"n_prompt": 0, "n_gen": 128, "test_time": "2025-04-24T11:58:51Z", "avg_ns": 1076767880, "avg_ts": 118.881588}
    | {"samples_ns": [1075361300, 1065089400, 1071761200, 1081934900, 1089692600]},
]

# Fields as vllm/benchmarks/serve.py writes them (commit 009e6d4); figures are made up.
VLLM: dict[str, Any] = {
    "date": "20260310-182556",
    "endpoint_type": "openai",
    "backend": "openai",
    "model_id": "meta-llama/Llama-3.1-8B-Instruct",
    "tokenizer_id": "meta-llama/Llama-3.1-8B-Instruct",
    "num_prompts": 400,
    "request_rate": 4.0,
    "burstiness": 1.0,
    "max_concurrency": None,
    "duration": 100.0,
    "completed": 396,
    "failed": 4,
    "total_input_tokens": 39600,
    "total_output_tokens": 19800,
    "request_throughput": 3.96,
    "output_throughput": 198.0,
    "total_token_throughput": 594.0,
    "max_output_tokens_per_s": 260.0,
    "mean_ttft_ms": 100.0,
    "median_ttft_ms": 90.0,
    "std_ttft_ms": 5.0,
    "p95_ttft_ms": 150.0,
    "p99_ttft_ms": 200.0,
    "mean_tpot_ms": 20.0,
    "median_tpot_ms": 19.0,
    "p99_tpot_ms": 30.0,
    "mean_itl_ms": 21.0,
    "median_itl_ms": 18.0,
    "p99_itl_ms": 44.0,
}

# Fields as sglang/bench_serving.py appends them, one line a run (release 0.5.18); figures are made up.
SGLANG: dict[str, Any] = {
    "tag": None,
    "backend": "sglang",
    "dataset_name": "random",
    "request_rate": float("inf"),
    "max_concurrency": 8,
    "duration": 10.0,
    "completed": 2,
    "total_input_tokens": 8,
    "total_output_tokens": 5,
    "total_output_tokens_retokenized": 5,
    "request_throughput": 0.2,
    "input_throughput": 0.8,
    "output_throughput": 0.5,
    "total_throughput": 1.3,
    "mean_e2e_latency_ms": 10.0,
    "median_e2e_latency_ms": 11.0,
    "p99_e2e_latency_ms": 12.0,
    "mean_ttft_ms": 16.0,
    "median_ttft_ms": 15.0,
    "mean_tpot_ms": 2.0,
    "median_tpot_ms": 2.5,
    "mean_itl_ms": 2.0,
    "median_itl_ms": 1.5,
    "accept_length": 1.0,
    "input_lens": [4, 4, 4],
    "output_lens": [3, 2, 0],
    "ttfts": [0.012, 0.020, 0.0],
    "itls": [[0.001, 0.002], [0.003], []],
    "errors": ["", "", "connection reset"],
}


def _aiperf(average: float, unit: str = "ms", **more: float) -> dict[str, Any]:
    return {"unit": unit, "avg": average, **more}


# Fields from excerpts of AIPerf's documentation and source and from memory, versions included; figures are made up.
AIPERF: dict[str, Any] = {
    "schema_version": "1.4",
    "aiperf_version": "0.12.0",
    "request_latency": _aiperf(1.1, "sec", p50=1.0, p90=1.5, p95=1.6, p99=2.0, max=2.1, min=0.9),
    "time_to_first_token": _aiperf(45.5, p50=44.0, p90=60.0, p95=70.0, p99=120.0),
    "inter_token_latency": _aiperf(8.0, p50=7.5, p90=9.0, p95=9.5, p99=12.0),
    "inter_chunk_latency": _aiperf(8.2, p50=7.0, p90=11.0),
    "request_count": _aiperf(250, "requests"),
    "error_request_count": _aiperf(2, "requests"),
    "request_throughput": _aiperf(5.0, "requests/sec"),
    "output_token_throughput": _aiperf(500.0, "tokens/sec"),
    "output_token_throughput_per_user": _aiperf(60.0, "tokens/sec/user"),
    "benchmark_duration": _aiperf(50.0, "sec"),
    "input_sequence_length": _aiperf(550.0, "tokens"),
    "output_sequence_length": _aiperf(100.0, "tokens"),
    "input_config": {"endpoint": {"model_names": ["Qwen/Qwen3-0.6B"]}, "loadgen": {"concurrency": 8}},
    "start_time": "2026-04-22T10:00:00Z",
}


def _guidellm(mean: float, **percentiles: float) -> dict[str, Any]:
    return {"successful": {"mean": mean, "median": percentiles["p50"], "percentiles": percentiles, "count": 300}}


# Fields from excerpts of GuideLLM's source and from memory, versions included; figures are made up.
GUIDELLM: dict[str, Any] = {
    "metadata": {"version": 2, "guidellm_version": "0.7.2"},
    "args": {"model": "meta-llama/Llama-3.1-8B-Instruct"},
    "benchmarks": [
        {
            "config": {"strategy": strategy},
            "start_time": 1_700_000_000.0,
            "end_time": 1_700_000_060.0,
            "duration": 60.0,
            "metrics": {
                "request_totals": {"successful": 300, "errored": 3, "incomplete": 5, "total": 308},
                "requests_per_second": {"successful": {"mean": 5.0}},
                "output_tokens_per_second": {"successful": {"mean": 250.0}},
                "tokens_per_second": {"successful": {"mean": 750.0}},
                "prompt_token_count": {"successful": {"total_sum": 30000}},
                "output_token_count": {"successful": {"total_sum": 15000}},
                "time_to_first_token_ms": _guidellm(40.0, p50=35.0, p90=60.0, p95=70.0, p99=90.0),
                "inter_token_latency_ms": _guidellm(15.0, p50=14.0, p90=18.0, p95=19.0, p99=25.0),
                "time_per_output_token_ms": _guidellm(17.0, p50=16.0, p90=20.0, p95=21.0, p99=28.0),
                "request_latency": _guidellm(0.8, p50=0.75, p90=1.0, p95=1.1, p99=1.4),
            },
        }
        for strategy in ({"type_": "concurrent", "streams": 8}, {"type_": "constant", "rate": 5.0})
    ],
}
