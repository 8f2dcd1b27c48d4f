"""What our worker costs around llama.cpp: decode tokens/s over HTTP, beside xllamacpp's server and transformers.

The bundled GGUF, one thread, all servers on one core, of which one is busy at a time, and the client on the others.
Each prompt goes to each server in turn, in alternating order, so that the machine's mood strikes all alike. Prints
medians of pairs and exits 1 when our worker is more than 5 % slower than xllamacpp alone.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from mcp_core.models.catalog import bundled_gguf  # noqa: E402
from mcp_core.presets import bundled  # noqa: E402
from mcp_core.recipe import Recipe  # noqa: E402
from mcp_core.serving.supervisor import Supervisor  # noqa: E402
from tests.bench.report import Report  # noqa: E402

ROUNDS, PROMPTS = 2, 6
REPLY_TOKENS = 128
CONTEXT = 1024
LLAMA_CPP = Recipe().replace(
    {"engine": "llama.cpp", "quantization.scheme": "gguf", "threads": 1, "device": "cpu", "kv.max_context": CONTEXT}
)
TRANSFORMERS = bundled().replace({"threads": 1, "device": "cpu", "kv.max_context": CONTEXT})
ALONE = """
import sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
parameters.n_parallel, parameters.n_ctx, parameters.verbosity = 1, int(sys.argv[2]), 1
parameters.hostnames, parameters.port = ["127.0.0.1"], 0
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def main() -> int:
    report = Report()
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("MCP_HOME", home)
        pairs = [pair for repeat in range(ROUNDS) for pair in asyncio.run(one_round(repeat))]
    alone = statistics.median([ours / theirs for ours, theirs, _ in pairs])
    other = statistics.median([ours / slower for ours, _, slower in pairs])
    rates = ", ".join(f"{statistics.median(each):.1f}" for each in zip(*pairs, strict=True))
    figure = f"{alone:.3f} (llama.cpp worker, xllamacpp alone, transformers fp32: {rates} tok/s)"
    report.row("decode over HTTP, llama.cpp worker / xllamacpp alone", ">= 0.95", figure, holds=alone >= 0.95)
    report.row("decode over HTTP, llama.cpp worker / transformers fp32", "be printed", f"{other:.2f}", holds=True)
    return report.end()


async def one_round(repeat: int) -> list[tuple[float, float, float]]:
    """(our worker, xllamacpp alone, our transformers worker) in tokens/s for each prompt, in turns."""
    supervisor = Supervisor()
    command = [sys.executable, "-c", ALONE, str(bundled_gguf()), str(CONTEXT)]
    with subprocess.Popen(  # noqa: ASYNC220 - nothing else runs on this loop
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        alone = (process.stdout.readline().strip(), "")
        try:
            workers = [await supervisor.start(recipe) for recipe in (LLAMA_CPP, TRANSFORMERS)]
            pids = [process.pid, *(each.pid or 0 for each in workers)]
            ours, slower = ((str(each.url), each.recipe.model.id) for each in workers)
            pin(pids)
            return await asyncio.to_thread(in_turns, [ours, alone, slower], repeat)
        finally:
            await supervisor.close()
            process.stdin.close()  # type: ignore[union-attr]


def pin(pids: list[int]) -> None:
    """These on the first core, the client on the others; ``cores.pinned`` pins one worker at a time."""
    first, *others = sorted(os.sched_getaffinity(os.getppid()))
    for pid, cores in (*((each, {first}) for each in pids), (os.getpid(), set(others))):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def in_turns(servers: list[tuple[str, str]], repeat: int) -> list[tuple[float, float, float]]:
    rows = []
    for number in range(PROMPTS + 1):
        prompt = f"{repeat}{number}. A long story for children about a lighthouse and a fox. Once upon a time"
        order = servers if number % 2 else servers[::-1]
        found = {server: reply_rate(*server, prompt) for server in order}
        rows.append(tuple(found[server] for server in servers))
    return rows[1:]  # the first warms up


def reply_rate(url: str, model: str, prompt: str) -> float:
    """Tokens/s from the first token to the end."""
    fields = {"model": model} if model else {}
    body = {"prompt": prompt, "max_tokens": REPLY_TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    connection.request("POST", "/v1/completions", json.dumps(body | fields), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    arrived_s = [time.perf_counter() for line in response if line.startswith(b"data: {")]
    connection.close()
    assert len(arrived_s) >= REPLY_TOKENS
    return (REPLY_TOKENS - 1) / (arrived_s[-1] - arrived_s[0])


if __name__ == "__main__":
    sys.exit(main())
