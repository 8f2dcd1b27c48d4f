"""On an NVIDIA device: vLLM measured, exported, started from its own interpreter and confirmed; a 7B shape.

    MCP_VLLM_PYTHON=/path/to/vllm/bin/python python tests/bench/ship_gpu.py OUT [--shape llama-2-7b-shape]

Writes both Runs, OUT/decision.json of them, the bundle OUT/vllm, confirmation.json, verify.json, report.html. What
is there is not made again, so that it goes on where it was cut.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

CORE = (sys.executable, "-m", "mcp_core.cli")
LOAD = ("--set", "workload.requests=200", "--set", "workload.concurrency=16", "--set", "workload.name=chat-16")
COMMON = ("--set", "engine=vllm", "--set", "device=cuda:0", "--set", "kv.max_context=2048")
VARIANTS = {
    "graphs": (
        "--set",
        "batching.mode=continuous",
        "--set",
        "compile=graphs",
        "--set",
        "batching.step_tokens=2048",
    ),
    "eager": ("--set", "batching.mode=continuous", "--set", "compile=off", "--set", "batching.step_tokens=2048"),
}


def main() -> int:
    """A step that fails ends it, but for those whose exit code is an answer, which is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", default="llama-2-7b-shape")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    for name, changes in VARIANTS.items():
        make(out / f"{name}.json", "bench", options.shape, "chat", *COMMON, *changes, *LOAD)
    make(out / "decision.json", "recommend", '{"users": 16}')
    make(out / "vllm", "export", str(out / "decision.json"), "--target", "vllm")
    keep(out / "confirmation.json", "confirm", str(out / "vllm"), "--json")
    keep(out / "verify.json", "verify", str(out / "vllm" / "decision.json"), "--starts", "2", "--json")
    make(out / "report.html", "report", str(out / "vllm" / "decision.json"))
    return 0


def make(made: Path, *words: str) -> None:
    """One command that writes a file or folder, its output as it comes."""
    if not made.exists():
        subprocess.run((*CORE, *words, "--out", str(made)), check=True)


def keep(file: Path, *words: str) -> None:
    """One command whose document is kept, also where it answers no (exit code 1)."""
    if not file.exists():
        done = subprocess.run((*CORE, *words), stdout=subprocess.PIPE, check=False)
        file.write_bytes(done.stdout)
        sys.stdout.write(f"{words[0]}: exit code {done.returncode}, {file}\n")


if __name__ == "__main__":
    sys.exit(main())
