"""What the load generator itself adds: receive time less the stamp that a fake server puts on each chunk.

Run on a quiet machine; on a busy one put ``chrt -r 10`` before it. The server and the load generator each have a
process; what other programs used meanwhile stands beside the figures, which it adds to.

    .venv/bin/python tests/bench/loadgen.py [--rate 200] [--requests 2000]

sends requests of 16 tokens at a rate. Aim: 1 ms at the 99th percentile at 200 requests/s.

    .venv/bin/python tests/bench/loadgen.py --users 64 128 256 [--form worker|vllm] [--tokens 200] [--source DIR]

has so many users at once whose chunks are all sent at one moment, every 12 ms. Aim: the loop's lag (p99) below
2 ms at 64 users. ``cpu_us_per_chunk``, this thread's CPU time for all that it did by its chunks, is the figure that
others on the machine disturb least. ``--source`` measures the mcp_core of another folder, a JSON line each.
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
if "--source" in sys.argv:
    sys.path.insert(0, str(Path(sys.argv[sys.argv.index("--source") + 1]).resolve()))

from mcp_core.evaluation import loadgen
from mcp_core.evaluation.cores import OthersLoad
from mcp_core.evaluation.loadgen import run_load
from mcp_core.evaluation.metrics import summarize
from mcp_core.evaluation.prompts import token_prompts
from mcp_core.evaluation.reply_record import ReplyRecord
from mcp_core.serving.client import ServerClient, open_session
from mcp_core.workload import Workload

TTFT_MS, TPOT_MS, TOKENS, BEAT_MS = 20.0, 5.0, 16, 12.0
FAKE_SERVER = [sys.executable, "-m", "mcp_core.evaluation.fake_server"]
BEAT_SERVER = [sys.executable, str(Path(__file__).with_name("beat_server.py")), "--beat-ms", str(BEAT_MS)]


STAMPS: list[tuple[float, str]] = []


class Stamped(ReplyRecord):
    """Keeps of every chunk when it was received and what it says, which is when it was sent."""

    def take(self, chunk):
        super().take(chunk)
        STAMPS.append((chunk.received_s, chunk.text))


def drive(command: list[str], workload: Workload, warm: dict) -> dict:
    """Send the workload, after some of it to warm up."""
    loadgen.ReplyRecord = Stamped
    prompts = token_prompts(workload, 32000, ())
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()

        async def main():
            async with open_session() as session:
                client = ServerClient(url, None, session)
                await run_load(client, workload.replace(warm), prompts, model="fake")
                STAMPS.clear()
                others, used_s = OthersLoad((os.getpid(), process.pid)), time.thread_time()
                result = await run_load(client, workload, prompts, model="fake")
                return result, time.thread_time() - used_s, others.read()

        result, used_s, others = asyncio.run(main())
        process.stdin.close()
    return figures(result, used_s) | {"others_cores": others}


def figures(result, used_s: float) -> dict:
    measured = summarize(result.records, result.duration_s)
    delays_ms = [(received_s - float(sent)) * 1e3 for received_s, sent in STAMPS if sent]
    p50, p99 = np.percentile(delays_ms, (50, 99))
    return {
        "requests_s": measured.requests_s,
        "output_tok_s": measured.output_tok_s,
        "chunks": len(delays_ms),
        "receive_less_stamp_p50_ms": round(float(p50), 3),
        "receive_less_stamp_p99_ms": round(float(p99), 3),
        "late_p99_ms": None if measured.late_p99_ms is None else round(measured.late_p99_ms, 3),
        "lag_p99_ms": round(result.lag_p99_ms, 3),
        "tpot_p50_ms": round(measured.tpot_ms.p50, 3),
        "load_generator_cores": round(used_s / result.duration_s, 3),
        "cpu_us_per_chunk": round(used_s / len(delays_ms) * 1e6, 2),
        "failed": measured.failed,
    }


def at_rate(rate_s: float, requests: int) -> dict:
    """Poisson arrivals to a server that keeps to a latency law."""
    workload = Workload(
        requests=requests,
        prompt_tokens=64,
        output_tokens=TOKENS,
        arrivals={"kind": "poisson", "rate_s": rate_s},
    )
    command = [*FAKE_SERVER, "--ttft-ms", str(TTFT_MS), "--tpot-ms", str(TPOT_MS)]
    found = drive(command, workload, {"requests": 50})
    return found | {"tpot_p50_error_percent": round((found["tpot_p50_ms"] / TPOT_MS - 1) * 100, 2)}


def at_once(users: int, tokens: int, form: str) -> dict:
    """Users whose chunks come together."""
    workload = Workload(requests=4 * users, concurrency=users, prompt_tokens=64, output_tokens=tokens)
    found = drive([*BEAT_SERVER, "--form", form], workload, {"requests": users, "output_tokens": 8})
    return {"users": users, "form": form, "source": str(Path(loadgen.__file__).parents[2])} | found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--users", type=int, nargs="+", default=())
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--form", choices=("worker", "vllm"), default="worker")
    parser.add_argument("--source")
    options = parser.parse_args()
    for users in options.users:
        sys.stdout.write(json.dumps(at_once(users, options.tokens, options.form)) + "\n")
    if not options.users:
        sys.stdout.write(json.dumps(at_rate(options.rate, options.requests), indent=2) + "\n")
