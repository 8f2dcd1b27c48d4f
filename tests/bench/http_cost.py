"""What HTTP and server-sent events cost, with the shipped fake engine behind the real API (``make bench``, 50 s).

The server has a core to itself, clients have the others. One stream at 300 tokens/s is held against the same
engine driven without HTTP, in turns; the engine waits a step's time after each hand-off, as a model would, so
that whatever the server takes from the engine's thread is seen. Then 256 streams at 4,800 tokens/s together,
while a process of its own asks /health and scrapes /metrics. Prints one row a claim, the figures as JSON, and
exits 1 if one does not hold.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from mcp_core.evaluation.cores import OthersLoad, pinned  # noqa: E402
from mcp_core.serving.client import ServerClient, open_session  # noqa: E402
from mcp_core.serving.listener import HOST  # noqa: E402
from tests.bench.report import Report  # noqa: E402

ONE_TOK_S, ONE_TOKENS, PAIRS = 300, 600, 5
STREAMS, ALL_TOK_S, SECONDS = 256, 4800, 12.0
MODEL = "fake"
PROMPT = list(range(1, 65))


@dataclass
class Server:
    """The process under measurement and its pipe."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def ask(self, order: dict[str, int]) -> dict[str, float]:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system


def main() -> int:
    report = Report()
    figures = asyncio.run(one_stream(report)) | asyncio.run(many_streams(report))
    print(json.dumps(figures))
    return report.end()


async def one_stream(report: Report) -> dict[str, Any]:
    with fake_worker(1 / ONE_TOK_S, 8, catches_up=False) as server, pinned(server.process.pid, 1):
        http, direct, cpu = [], [], []
        async with open_session() as session:
            client = ServerClient(server.url, None, session)
            for _ in range(PAIRS + 1):
                before_s = server.cpu_s()
                http.append(await stream_s(client, ONE_TOKENS))
                cpu_s = server.cpu_s() - before_s
                before_s = server.cpu_s()
                direct.append(server.ask({"direct": ONE_TOKENS})["seconds"])
                cpu.append((cpu_s - (server.cpu_s() - before_s)) / ONE_TOKENS)
    rates = [ONE_TOKENS / statistics.median(each[1:]) for each in (http, direct)]
    cost = 1 - rates[0] / rates[1]
    figure = f"{cost:.1%} ({rates[0]:.1f} against {rates[1]:.1f} tok/s)"
    report.row(f"HTTP + SSE costs of one stream at {ONE_TOK_S} tok/s", "<= 3 %", figure, holds=cost <= 0.03)
    cpu_us = statistics.median(cpu[1:]) * 1e6
    return {"one_http_tok_s": rates[0], "one_direct_tok_s": rates[1], "one_http_cpu_us_a_token": cpu_us}


async def many_streams(report: Report) -> dict[str, Any]:
    tokens = round((SECONDS + 3) * ALL_TOK_S / STREAMS)
    with fake_worker(STREAMS / ALL_TOK_S, STREAMS, catches_up=True) as server, pinned(server.process.pid, 1):
        async with open_session() as session:
            client = ServerClient(server.url, None, session)
            streams = [asyncio.create_task(stream_s(client, tokens)) for _ in range(STREAMS)]
            await asyncio.sleep(2)
            others, probe_s = OthersLoad([server.process.pid, os.getpid()]), children_s()
            began_s, cpu_s = time.perf_counter(), server.cpu_s()
            probe = await probed(server.port, SECONDS)
            took_s = time.perf_counter() - began_s
            cores = (server.cpu_s() - cpu_s) / took_s
            noise = (others.read() or 0.0) - (children_s() - probe_s) / took_s
            took = await asyncio.gather(*streams)
        render_ms = server.ask({"render": 20})["ms"]
    rate = STREAMS * tokens / statistics.median(took)
    health_ms, scrape_ms = percentile(probe["/health"], 0.99), max(probe["/metrics"])
    about = f"{STREAMS} streams, {ALL_TOK_S} tok/s"
    report.row(f"{about}: they come", ">= 97 %", f"{rate:.0f} tok/s", holds=rate >= 0.97 * ALL_TOK_S)
    report.row(f"{about}: the server uses", "<= 0.3 core", f"{cores:.2f} core", holds=cores <= 0.3)
    figure = f"{health_ms:.1f} ms, while others used {noise:.2f} core"
    report.row(f"{about}: /health p99", "<= 50 ms", figure, holds=health_ms <= 50)
    figure = f"{scrape_ms:.1f} ms; rendering it {render_ms:.1f} ms"
    report.row(f"{about}: slowest of {len(probe['/metrics'])} /metrics", "<= 50 ms", figure, holds=scrape_ms <= 50)
    return {
        "many_tok_s": rate,
        "many_server_cores": cores,
        "health_p50_ms": percentile(probe["/health"], 0.5),
        "health_p99_ms": health_ms,
        "health_answers": len(probe["/health"]),
        "metrics_max_ms": scrape_ms,
        "metrics_render_ms": render_ms,
        "others_cores": noise,
    }


async def stream_s(client: ServerClient, tokens: int) -> float:
    """Seconds from the request to its last token; every chunk must carry one."""
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    began_s, last_s, counted = time.perf_counter(), 0.0, 0
    async for chunk in client.stream("/v1/completions", body):
        assert chunk.error is None, chunk.error
        if chunk.has_token:
            assert len(chunk.token_ids) == 1
            last_s, counted = chunk.received_s, counted + 1
    assert counted == tokens
    return last_s - began_s


async def probed(port: int, seconds: float) -> dict[str, list[float]]:
    command = [sys.executable, str(ROOT / "tests" / "bench" / "probe.py"), HOST, str(port), str(seconds)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(output)


@contextmanager
def fake_worker(token_s: float, max_requests: int, *, catches_up: bool) -> Iterator[Server]:
    arguments = [str(token_s), str(max_requests), str(int(catches_up))]
    command = [sys.executable, str(ROOT / "tests" / "bench" / "fake_worker.py"), *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        yield Server(process, json.loads(process.stdout.readline())["port"])
        process.stdin.close()


def children_s() -> float:
    """CPU time of processes that were started here and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    sys.exit(main())
