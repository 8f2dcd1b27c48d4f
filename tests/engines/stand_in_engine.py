"""A stand-in for the Python interpreter of a vLLM or SGLang installation: strict about flags, quick to answer.

Run as ``python -c ...`` it tells a version; as ``-m vllm.entrypoints.cli.main serve ...`` or ``-m
sglang.launch_server ...`` it refuses every option that the release does not have (the lists beside this file were
read from the released wheels), then serves. STAND_IN_* variables script it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VERSIONS = {"vllm": "0.23.0", "sglang": "0.5.23"}
# Options that MCP uses -> type or choices; None takes no value. What is missing here is refused, too.
VLLM: dict[str, Any] = {
    "--host": str,
    "--port": int,
    "--served-model-name": str,
    "--dtype": ("float32", "bfloat16", "float16"),
    "--max-model-len": int,
    "--gpu-memory-utilization": float,
    "--max-num-seqs": int,
    "--max-num-batched-tokens": int,
    "--generation-config": str,
    "--enable-prompt-tokens-details": None,
    "--disable-uvicorn-access-log": None,
    "--disable-fastapi-docs": None,
    "--allowed-origins": json.loads,
    "--quantization": ("bitsandbytes", "fp8", "torchao", "gguf"),
    "--attention-backend": ("FLASH_ATTN", "FLEX_ATTENTION", "FLASHINFER", "TRITON_ATTN"),
    "--enable-prefix-caching": None,
    "--no-enable-prefix-caching": None,
    "--kv-cache-dtype": ("auto", "fp8", "fp8_e4m3", "fp8_e5m2"),
    "--block-size": int,
    "--num-gpu-blocks-override": int,
    "--enforce-eager": None,
    "--spec-method": ("ngram", "draft_model"),
    "--spec-model": str,
    "--spec-tokens": int,
    "--load-format": ("auto", "dummy", "bitsandbytes"),
}
SGLANG: dict[str, Any] = {
    "--model-path": str,
    "--host": str,
    "--port": int,
    "--served-model-name": str,
    "--dtype": ("float32", "bfloat16", "float16"),
    "--context-length": int,
    "--max-running-requests": int,
    "--sampling-defaults": ("openai", "model"),
    "--enable-metrics": None,
    "--enable-cache-report": None,
    "--log-level-http": str,
    "--api-key": str,
    "--quantization": ("bitsandbytes", "fp8", "awq", "gptq"),
    "--load-format": ("auto", "dummy", "bitsandbytes"),
    "--attention-backend": ("fa3", "fa4", "flashinfer", "triton", "flex_attention", "torch_native"),
    "--disable-radix-cache": None,
    "--kv-cache-dtype": ("auto", "fp8_e4m3", "fp8_e5m2"),
    "--max-total-tokens": int,
    "--disable-decode-cuda-graph": None,
    "--disable-prefill-cuda-graph": None,
    "--chunked-prefill-size": int,
    "--speculative-algorithm": ("NGRAM", "STANDALONE"),
    "--speculative-draft-model-path": str,
    "--speculative-num-steps": int,
    "--speculative-eagle-topk": int,
    "--speculative-num-draft-tokens": int,
}


def parser(options: dict[str, Any], flags_file: str) -> argparse.ArgumentParser:
    """Strict: no abbreviations, only options that the release really has."""
    real = set((HERE / flags_file).read_text().split())
    made_up = options.keys() - real
    assert not made_up, f"not in {flags_file}: {made_up}"
    it = argparse.ArgumentParser(allow_abbrev=False)
    for name, kind in options.items():
        if kind is None:
            it.add_argument(name, action="store_true")
        elif isinstance(kind, tuple):
            it.add_argument(name, choices=kind)
        else:
            it.add_argument(name, type=kind)
    return it


def read_vllm(arguments: list[str]) -> argparse.Namespace:
    it = parser(VLLM, "vllm_0.23.0_flags.txt")
    it.add_argument("model_tag")
    read = it.parse_args(arguments)
    read.model, read.key, read.context = read.model_tag, os.environ["VLLM_API_KEY"], read.max_model_len
    if read.max_num_batched_tokens and read.max_num_batched_tokens < read.max_num_seqs:
        it.error("max_num_batched_tokens must be at least max_num_seqs")
    return read


def read_sglang(arguments: list[str]) -> argparse.Namespace:
    assert arguments[0] == "--config"
    secret = Path(arguments[1])
    assert secret.stat().st_mode & 0o077 == 0, "others can read the key"
    assert secret.suffix == ".yaml"
    merged = [text for name, value in json.loads(secret.read_text()).items() for text in (f"--{name}", str(value))]
    read = parser(SGLANG, "sglang_0.5.23_flags.txt").parse_args([*merged, *arguments[2:]])
    read.model, read.key, read.context = read.model_path, read.api_key, read.context_length
    return read


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, engine: str, read: argparse.Namespace) -> None:
        super().__init__((read.host, read.port), Handler)
        self.engine, self.read = engine, read
        self.prompt_tokens = self.output_tokens = self.requests = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, b"")
        elif self.path == "/metrics":
            self.answer(200, metrics(self.server).encode(), "text/plain; version=0.0.4")
        elif not self.allowed():
            self.answer(401, b'{"error": "Unauthorized"}')
        elif self.path == "/v1/models":
            card = {"id": self.server.read.served_model_name, "max_model_len": self.server.read.context}
            self.answer(200, json.dumps({"object": "list", "data": [card]}).encode())
        else:
            self.answer(404, b'{"detail": "Not Found"}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            self.answer(401, b'{"error": "Unauthorized"}')
        elif body.get("prompt") == "die":
            os.kill(os.getpid(), 9)
        elif self.path == "/v1/completions":
            self.stream(body, lambda index: {"text": f" w{index}", "index": 0})
        elif self.path == "/v1/chat/completions":
            self.stream(body, lambda index: {"delta": {"content": f" w{index}"}, "index": 0})
        else:
            self.answer(404, b'{"detail": "Not Found"}')

    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.read.key}"

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, body: dict[str, Any], choice: Any) -> None:
        prompt = body.get("prompt")
        if isinstance(prompt, list):
            assert body["ignore_eos"] is True
            assert body["min_tokens"] == body["max_tokens"]
        length, count = len(prompt) if prompt else 7, body["max_tokens"]
        if length + count > self.server.read.context:
            self.answer(400, json.dumps({"error": {"message": "too long"}}).encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for index in range(count):
            piece = choice(index) | {"finish_reason": "length" if index == count - 1 else None}
            if body.get("return_token_ids"):
                piece["token_ids"] = [index]
            self.event({"choices": [piece]})
        usage = {"prompt_tokens": length, "completion_tokens": count, "total_tokens": length + count}
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True
        with self.server.lock:
            self.server.requests += 1
            self.server.prompt_tokens += length
            self.server.output_tokens += count

    def event(self, document: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(document).encode() + b"\n\n")
        self.wfile.flush()


def metrics(server: Server) -> str:
    if server.engine == "vllm":
        label = '{engine="0",model_name="m"}'
        return (
            f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{label} 2.0\n"
            f"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{label} 3.0\n"
            f"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{label} 0.25\n"
            f"# TYPE vllm:prompt_tokens_total counter\nvllm:prompt_tokens_total{label} {server.prompt_tokens}\n"
            f"# TYPE vllm:generation_tokens_total counter\n"
            f"vllm:generation_tokens_total{label} {server.output_tokens}\n"
            "# TYPE vllm:request_success_total counter\n"
            f'vllm:request_success_total{{engine="0",finished_reason="length"}} {server.requests}\n'
            'vllm:request_success_total{engine="0",finished_reason="abort"} 1\n'
            "# TYPE vllm:cache_config_info gauge\n"
            'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0\n'
        )
    return (
        '# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs{tp_rank="0"} 1.0\n'
        "# TYPE sglang:generation_tokens_total counter\n"
        f'sglang:generation_tokens_total{{is_streaming="true"}} {server.output_tokens}\n'
        'sglang:generation_tokens_total{is_streaming="false"} 0\n'
        "# TYPE sglang:cached_tokens_total counter\n"
        'sglang:cached_tokens_total{cache_source="device"} 0\n'
    )


LOGS = {
    "vllm": (
        "(EngineCore pid=1) INFO 11-25 10:00:00 [model_runner.py:298] Loading model from scratch...",
        "(EngineCore pid=1) INFO 11-25 10:00:00 [cuda.py:318] Using AttentionBackendEnum.FLASH_ATTN backend.",
        "(EngineCore pid=1) INFO 11-25 10:00:00 [flash_attn.py:636] Using FlashAttention version 3",
        "(EngineCore pid=1) INFO 11-25 10:00:01 [model_runner.py:319] Model loading took 2.5 GiB and 1.0 seconds",
        "INFO 11-25 10:00:02 [kv_cache_utils.py:1744] GPU KV cache size: 1,600 tokens",
    ),
    "sglang": (
        "[2026-11-25 10:00:00] Load weight begin. avail mem=78.00 GB",
        "[2026-11-25 10:00:01] Load weight end. elapsed=1.00 s, type=X, avail mem=70.00 GB, mem usage=2.50 GB.",
        "[2026-11-25 10:00:02] max_total_num_tokens=1600, chunked_prefill_size=512, context_len=64",
    ),
}


def serve(engine: str, read: argparse.Namespace) -> None:
    core = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"
    child = subprocess.Popen([sys.executable, "-c", core])  # as vLLM's EngineCore: it outlives its parent
    pids = os.environ.get("STAND_IN_PIDS")
    if pids:
        Path(pids).write_text(json.dumps([os.getpid(), child.pid]))
    for line in LOGS[engine]:
        print(line, flush=True)
    failure = os.environ.get("STAND_IN_FAILURE")
    if failure:
        print(failure.replace("KEY", read.key), flush=True)
        sys.exit(3)
    seen = os.environ.get("STAND_IN_SEEN")
    if seen:
        names = (
            "CUDA_VISIBLE_DEVICES",
            "HF_HUB_OFFLINE",
            "VLLM_API_KEY",
            "PYTHONPATH",
            "MCP_HOME",
            "OMP_NUM_THREADS",
        )
        environment = {name: os.environ.get(name) for name in names}
        files = [each.name for each in Path().iterdir()]
        Path(seen).write_text(json.dumps({"argv": sys.argv[1:], "env": environment, "files": files}))
    time.sleep(0.1)
    Server(engine, read).serve_forever()


def main(arguments: list[str]) -> None:
    if arguments[0] == "-c":
        package = next((name for name in VERSIONS if repr(name) in arguments[1]), None)
        if package is None or package in os.environ.get("STAND_IN_LACKS", ""):
            sys.exit("PackageNotFoundError")
        print(VERSIONS[package])
    elif arguments[:3] == ["-m", "vllm.entrypoints.cli.main", "serve"]:
        serve("vllm", read_vllm(arguments[3:]))
    elif arguments[:2] == ["-m", "sglang.launch_server"]:
        serve("sglang", read_sglang(arguments[2:]))
    else:
        sys.exit(f"not understood: {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
