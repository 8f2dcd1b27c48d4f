"""What the load generator itself adds: receive time less the stamp that the fake server puts on each chunk.

Run on a quiet machine: .venv/bin/python tests/bench/loadgen.py [--rate 200] [--requests 2000]; on a busy one put
``chrt -r 10`` before it. Aim: 1 ms at the 99th percentile at 200 requests/s of 16 tokens. The fake server and the
load generator each have a process; what other programs used meanwhile stands beside the figures, which it adds to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from mcp_core.evaluation.cores import OthersLoad
from mcp_core.evaluation.loadgen import run_load
from mcp_core.evaluation.metrics import summarize
from mcp_core.evaluation.prompts import token_prompts
from mcp_core.serving.client import ServerClient, open_session
from mcp_core.workload import Workload

TTFT_MS, TPOT_MS, TOKENS = 20.0, 5.0, 16


class Stamped(ServerClient):
    """Keeps, for every chunk, how long after the server's stamp it was received, ms."""

    delays_ms: list[float]

    async def stream(self, path, body):
        async for chunk in super().stream(path, body):
            if chunk.has_token:
                self.delays_ms.append((chunk.received_s - float(chunk.text)) * 1e3)
            yield chunk


def measure(rate_s: float, requests: int) -> dict[str, float]:
    workload = Workload(
        requests=requests,
        prompt_tokens=64,
        output_tokens=TOKENS,
        arrivals={"kind": "poisson", "rate_s": rate_s},
    )
    command = [sys.executable, "-m", "mcp_core.evaluation.fake_server"]
    command += ["--ttft-ms", str(TTFT_MS), "--tpot-ms", str(TPOT_MS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()

        async def main():
            async with open_session() as session:
                client = Stamped(url, None, session)
                client.delays_ms = []
                await run_load(client, workload.replace({"requests": 50}), PROMPTS, model="fake")
                client.delays_ms.clear()
                others = OthersLoad((os.getpid(), process.pid))
                used_s = time.process_time()
                result = await run_load(client, workload, PROMPTS, model="fake")
                return client.delays_ms, result, time.process_time() - used_s, others.read()

        delays_ms, result, used_s, others = asyncio.run(main())
        process.stdin.close()
    measured = summarize(result.records, result.duration_s)
    p50, p99 = np.percentile(delays_ms, (50, 99))
    return {
        "requests_s": measured.requests_s,
        "chunks": len(delays_ms),
        "receive_less_stamp_p50_ms": round(float(p50), 3),
        "receive_less_stamp_p99_ms": round(float(p99), 3),
        "late_p99_ms": round(measured.late_p99_ms, 3),
        "lag_p99_ms": round(result.lag_p99_ms, 3),
        "tpot_p50_error_percent": round((measured.tpot_ms.p50 / TPOT_MS - 1) * 100, 2),
        "load_generator_cores": round(used_s / result.duration_s, 3),
        "others_cores": others,
        "failed": measured.failed,
    }


PROMPTS = token_prompts(Workload(prompt_tokens=64, output_tokens=TOKENS), 32000, ())

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    sys.stdout.write(json.dumps(measure(options.rate, options.requests), indent=2) + "\n")
