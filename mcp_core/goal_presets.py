"""Goal presets: published latency limits for Workload presets.

All are MLPerf Inference's limits of its Server scenario, at the 99th percentile, by ``ttft_latency`` and
``tpot_latency`` of ``loadgen/mlperf.conf`` in github.com/mlcommons/inference (read on 2026-11-25). The benchmark's
model is named with each: limits for another model are a place to begin, not a standard.
"""

from __future__ import annotations

from collections.abc import Callable

from mcp_core.errors import ModelNotFound
from mcp_core.goal import Goal, LatencyLimits, Slo

__all__ = ["GOALS", "goal_preset"]


def chat() -> Goal:
    """Chat: p99 TTFT 500 ms, TPOT 30 ms (MLPerf Inference, llama3_1-8b-interactive)."""
    return _mlperf("chat", 500, 30)


def rag() -> Goal:
    """Retrieval, long prompts: p99 TTFT 6,000 ms, TPOT 175 ms (MLPerf Inference, llama3_1-405b)."""
    return _mlperf("rag", 6000, 175)


def code() -> Goal:
    """Code completion: p99 TTFT 2,000 ms, TPOT 200 ms (MLPerf Inference, mixtral-8x7b)."""
    return _mlperf("code", 2000, 200)


def summarization() -> Goal:
    """Summarization: p99 TTFT 2,000 ms, TPOT 100 ms (MLPerf Inference, llama3_1-8b)."""
    return _mlperf("summarization", 2000, 100)


def reasoning() -> Goal:
    """Reasoning: p99 TTFT 2,000 ms, TPOT 80 ms (MLPerf Inference, deepseek-r1)."""
    return _mlperf("reasoning", 2000, 80)


def _mlperf(name: str, ttft_ms: float, tpot_ms: float) -> Goal:
    slo = Slo(ttft_ms=LatencyLimits(p99=ttft_ms), tpot_ms=LatencyLimits(p99=tpot_ms))
    return Goal(name=f"mlperf-{name}", workload=name, slo=slo)


# None for agents: no published limit was found.
GOALS: dict[str, Callable[[], Goal]] = {
    "mlperf-chat": chat,
    "mlperf-rag": rag,
    "mlperf-code": code,
    "mlperf-summarization": summarization,
    "mlperf-reasoning": reasoning,
}


def goal_preset(name: str) -> Goal:
    """The preset of that name. Raises ModelNotFound listing the names there are."""
    if name not in GOALS:
        raise ModelNotFound(f'There is no Goal preset "{name}".', f"There are: {', '.join(GOALS)}.")
    return GOALS[name]()
