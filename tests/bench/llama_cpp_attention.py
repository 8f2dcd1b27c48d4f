"""llama.cpp with its FlashAttention (attention sdpa) and without (eager): the bundled GGUF, one thread, in turn.

``python -m tests.bench.llama_cpp_attention [--rounds 5]``: medians at several prompt lengths, 48 new tokens, by the
server that a worker has. Times are this process's on a CPU, so others at work disturb them less.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from mcp_core import llama_cpp
from mcp_core.inference.llama_cpp_server import LlamaServer
from mcp_core.models.catalog import bundled_gguf
from mcp_core.recipe import Recipe

CONTEXT, NEW = 2048, 48
KINDS = ("sdpa", "eager")


def served(attention: str) -> LlamaServer:
    recipe = llama_cpp.with_engine(Recipe(), "llama.cpp")
    return LlamaServer(bundled_gguf(), recipe.replace({"threads": 1, "attention": attention}), CONTEXT)


def timed(server: LlamaServer, prompt: list[int]) -> tuple[float, float]:
    """Time to first token and between tokens, ms."""
    asked = {"prompt": prompt, "n_predict": NEW, "ignore_eos": True, "samplers": ["temperature"], "temperature": 0}
    began, times = time.process_time(), []
    answer = server.complete(asked | {"stream": True, "cache_prompt": False, "id_slot": 0})
    while not answer.ended:
        times += [time.process_time() for event in answer.read() if "content" in event]
    answer.close()
    return (times[0] - began) * 1e3, (times[-1] - times[0]) / (len(times) - 1) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    servers, draw = {kind: served(kind) for kind in KINDS}, random.Random(0)
    print("prompt  attention  TTFT ms  TPOT ms  of sdpa's")
    for length in (64, 512, 1500):
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for _ in range(options.rounds):
            prompt = [draw.randrange(100, 40_000) for _ in range(length)]
            for kind, server in servers.items():
                found[kind].append(timed(server, prompt))
        middle = {kind: [statistics.median(each) for each in zip(*found[kind], strict=True)] for kind in KINDS}
        for kind, (first, between) in middle.items():
            shares = [mine / theirs for mine, theirs in zip((first, between), middle["sdpa"], strict=True)]
            print(
                f"{length:6}  {kind:9}  {first:7.0f}  {between:7.2f}  {shares[0]:.2f} {shares[1]:.2f}", flush=True
            )


if __name__ == "__main__":
    main()
