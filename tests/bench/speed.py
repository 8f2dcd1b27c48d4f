"""What batching and the prefix cache are worth on a CPU, each against a peer in the same run (``make bench``).

The bundled model in fp32, one thread, the worker pinned to one core and the load generator on the others. One
worker serves every mode: the mode is changed live between measurements, in turns, so that the weights and the place
are the same. Prints one row a claim and exits 1 if one does not hold.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from mcp_core.evaluation.benchmark import measure  # noqa: E402
from mcp_core.evaluation.cores import pinned  # noqa: E402
from mcp_core.hardware import detect  # noqa: E402
from mcp_core.presets import bundled  # noqa: E402
from mcp_core.serving.client import ServerClient, open_session  # noqa: E402
from mcp_core.serving.supervisor import Supervisor, Worker  # noqa: E402
from mcp_core.workload import Lengths, Workload  # noqa: E402
from tests.bench.report import Report  # noqa: E402

ROUNDS = 3
LOAD = Workload(
    name="16 at once",
    requests=32,
    concurrency=16,
    prompt_tokens=Lengths(min=16, max=96),
    output_tokens=Lengths(min=16, max=48),
    warmup_requests=1,
)
MODES: dict[str, dict[str, Any]] = {
    "off": {},
    "static": {"batching.mode": "static", "batching.max_requests": 16},
    "continuous": {"batching.mode": "continuous"},
}
PREFIX, TAIL = 1024, 20


def main() -> int:
    report = Report()
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("MCP_HOME", home)
        asyncio.run(claims(report))
    return report.end()


async def claims(report: Report) -> None:
    supervisor = Supervisor()
    try:
        worker = await supervisor.start(bundled().replace({"threads": 1, "device": "cpu"}))
        await batching(worker, report)
        await prefix_cache(worker, report)
    finally:
        await supervisor.close()


async def batching(worker: Worker, report: Report) -> None:
    rates: dict[str, list[float]] = {name: [] for name in MODES}
    for repeat in range(ROUNDS):
        for name, changes in MODES.items():
            await change(worker, changes)
            run = await measure(
                str(worker.url), worker.token, worker.recipe, LOAD.replace({"repeat": repeat}), detect()
            )
            assert run.measurement is not None, run.failure
            assert run.measurement.failed == 0
            rates[name].append(run.measurement.output_tok_s or 0.0)
    off = statistics.median(rates["off"])
    for name, must in (("static", 1.0), ("continuous", 3.0)):
        ratio = statistics.median(rates[name]) / off
        figure = f"{ratio:.2f} ({statistics.median(rates[name]):.1f} against {off:.1f} tok/s)"
        report.row(f"{name} at 16 concurrent / off, output tokens/s", f">= {must}", figure, holds=ratio >= must)


async def prefix_cache(worker: Worker, report: Report) -> None:
    """Time to first token of a prompt whose first 1,024 tokens are known, against one of which nothing is."""
    await change(worker, {"batching.mode": "continuous", "prefix_cache": True})
    cold, warm = [], []
    async with open_session() as session:
        client = ServerClient(str(worker.url), worker.token, session)
        with pinned(worker.pid or 0, 1):
            for turn in range(ROUNDS + 1):
                prefix = [1000 + (turn * 7919 + 31 * index) % 40_000 for index in range(PREFIX)]
                cold.append(await ttft_ms(client, [*prefix, *tail(2 * turn)]))
                warm.append(await ttft_ms(client, [*prefix, *tail(2 * turn + 1)]))
    ratio = statistics.median(cold[1:]) / statistics.median(warm[1:])
    figure = f"{ratio:.1f} ({statistics.median(cold[1:]):.0f} against {statistics.median(warm[1:]):.0f} ms)"
    report.row("TTFT cold / with 1,024 of 1,044 prompt tokens known", ">= 10", figure, holds=ratio >= 10)


def tail(number: int) -> Sequence[int]:
    return [2000 + (number * 104_729 + 17 * index) % 40_000 for index in range(TAIL)]


async def change(worker: Worker, changes: dict[str, Any]) -> None:
    async with open_session() as session:
        await ServerClient(str(worker.url), worker.token, session).set_recipe(worker.recipe.replace(changes))


async def ttft_ms(client: ServerClient, prompt: Sequence[int]) -> float:
    body = {"model": (await client.models())[0], "prompt": list(prompt), "max_tokens": 2, "temperature": 0}
    began_s = time.perf_counter()
    first_s = 0.0
    async for chunk in client.stream("/v1/completions", body):
        if chunk.has_token and not first_s:
            first_s = time.perf_counter()
    return (first_s - began_s) * 1e3


if __name__ == "__main__":
    sys.exit(main())
