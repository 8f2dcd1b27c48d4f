"""Our load generator and guidellm on the same endpoint: two instruments, one quantity.

guidellm has requirements of its own, so it belongs in an environment of its own: ``python -m venv V``, ``V/bin/pip
install guidellm==0.8.1``, then ``MCP_GUIDELLM=V/bin/guidellm pytest -m slow tests/evaluation/test_guidellm.py``.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_core.evaluation.loadgen import run_load, run_warmup
from mcp_core.evaluation.metrics import summarize
from mcp_core.evaluation.prompts import text_prompts
from mcp_core.serving.client import ServerClient, open_session
from mcp_core.workload import Workload

GUIDELLM = os.environ.get("MCP_GUIDELLM")
RATE_S, REQUESTS, OUTPUT = 10, 100, 16

pytestmark = [pytest.mark.slow, pytest.mark.skipif(GUIDELLM is None, reason="MCP_GUIDELLM names no guidellm")]


@pytest.fixture
def endpoint():
    """The address of a fake server in a process of its own: TTFT 40 ms, TPOT 10 ms."""
    command = [sys.executable, "-m", "mcp_core.evaluation.fake_server", "--ttft-ms", "40", "--tpot-ms", "10"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()


def ours(url):
    workload = Workload(
        requests=REQUESTS,
        prompt_tokens=24,
        output_tokens=OUTPUT,
        prompts={"as_chat": True},
        arrivals={"kind": "constant", "rate_s": RATE_S},
    )

    async def main():
        async with open_session() as session:
            client, prompts = ServerClient(url, None, session), text_prompts(workload)
            await run_warmup(client, workload, prompts, model="fake")
            return await run_load(client, workload, prompts, model="fake")

    result = asyncio.run(main())
    return summarize(result.records, result.duration_s)


def theirs(url, tokenizer, out):
    command = [
        GUIDELLM,
        "run",
        "--backend",
        f"kind=openai_http,target={url},model=fake",
        "--tokenizer",
        f"kind=huggingface_auto,model={tokenizer}",
        "--data",
        f"kind=synthetic_text,prompt_tokens=24,output_tokens={OUTPUT}",
        "--profile",
        f"kind=constant,rate={RATE_S}",
        "--constraint",
        f"kind=max_requests,count={REQUESTS}",
        "--output",
        f"kind=json,path={out}",
        "--disable-console-interactive",
    ]
    subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    names = ("inter_token_latency_ms", "request_latency", "time_to_first_token_ms")
    return {name: benchmark["metrics"][name]["successful"]["median"] for name in names}


def test_both_measure_the_same_within_three_percent(endpoint, tmp_path, monkeypatch):
    """guidellm's ITL is our TPOT by its formula: (last - first) / (tokens - 1), one value a request."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from tiny_llama import byte_tokenizer

    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    guidellm, own = theirs(endpoint, tmp_path / "tokenizer", tmp_path / "out.json"), ours(endpoint)
    sys.stdout.write(
        f"guidellm {guidellm}\nours TTFT {own.ttft_ms.p50}, TPOT {own.tpot_ms.p50}, E2E {own.e2e_ms.p50}\n"
    )
    assert own.failed == 0
    assert own.tpot_ms.p50 == pytest.approx(guidellm["inter_token_latency_ms"], rel=0.03)
    assert own.e2e_ms.p50 == pytest.approx(guidellm["request_latency"] * 1e3, rel=0.03)
    assert own.ttft_ms.p50 == pytest.approx(guidellm["time_to_first_token_ms"], rel=0.03)
