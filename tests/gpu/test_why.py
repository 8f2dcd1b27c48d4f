"""Ceilings and verdicts on an NVIDIA device: eager steps are launch-bound, recorded ones bandwidth-bound."""

from __future__ import annotations

import asyncio

import pytest
import torch

from mcp_core.ceilings import Ceilings
from mcp_core.evaluation import ceilings_job
from mcp_core.jobs import Job
from tests.evaluation.why_engine import Served, explained

pytestmark = pytest.mark.gpu

# 3.5 GB of weights in bf16: a step reads for 1.2 ms on an H100, and starts 400 kernels.
SHAPE = {
    "layers": 8,
    "hidden": 4096,
    "intermediate": 11008,
    "heads": 32,
    "kv_heads": 32,
    "vocab": 32000,
    "context": 2048,
}


@pytest.fixture(scope="module")
def ceilings(tmp_path_factory) -> Ceilings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCP_HOME", str(tmp_path_factory.mktemp("home")))
        job = Job(tmp_path_factory.mktemp("job"), {"device": "cuda:0", "threads": 1}, {})
        return Ceilings.model_validate(asyncio.run(ceilings_job.run(job)).result)


def test_ceilings_are_near_the_makers_figures(ceilings):
    """A100 to H200: 1.5 to 4.8 TB/s, 312 to 989 TFLOP/s dense bf16; no more than the maker says."""
    assert 0.5e12 < ceilings.bandwidth_bytes_s < 5e12
    assert 0.1e15 < ceilings.matmul_flop_s["bf16"] < 1.1e15
    assert ceilings.matmul_flop_s["tf32"] > ceilings.matmul_flop_s["fp32"]
    assert ceilings.sync_us is not None
    assert 1 < ceilings.op_us < ceilings.sync_us < 1000


def test_a_known_copy_takes_what_the_ceiling_says(ceilings):
    """By CUDA's own events, not by the host's clock."""
    source = torch.ones(2**28, dtype=torch.float32, device="cuda:0")
    target = torch.empty_like(source)
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    target.copy_(source)
    began.record()
    target.copy_(source)
    ended.record()
    torch.cuda.synchronize()
    found = 2 * source.nbytes / (began.elapsed_time(ended) / 1e3)
    assert ceilings.copy_bytes_s == pytest.approx(found, rel=0.25)


def test_eager_steps_are_launch_bound_and_recorded_ones_are_not(ceilings, tmp_path):
    eager = explained(Served(SHAPE, device="cuda:0", dtype="bf16"), ceilings, tmp_path)
    assert eager.verdict.cause == "launch", eager.verdict
    assert eager.verdict.change is not None
    assert eager.verdict.change.fields == {"compile": "graphs"}
    recorded = explained(
        Served(SHAPE, device="cuda:0", dtype="bf16", compile="graphs"), ceilings, tmp_path / "recorded"
    )
    assert recorded.verdict.cause == "bandwidth", recorded.verdict
    assert recorded.roofline is not None
    assert 0.3 < recorded.roofline.decode.mbu < 1.05
