"""How long a crowd will take, said before it is sent: by this worker's speed now, else since it was loaded, else by
its last Run.

This file does not know how a crowd is sent (``mcp_core/evaluation/crowd_job.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_core.crowd import CrowdPlan
from mcp_core.generation import EngineStats
from mcp_core.results import Run
from mcp_core.views import WorkerView
from pages._ui import format as fmt
from pages._ui import workbench

__all__ = ["Speed", "in_words", "most_s", "speed_of"]

# Samples in which the worker's latency of the last minute is looked for, and Runs in which its Recipe is.
_RECENT_S, _RUNS = 10, 100
_UNKNOWN = "How long it takes is known once this worker has answered: send it a message in Chat first."


@dataclass(frozen=True, slots=True)
class Speed:
    """One request alone, or slower: ms for each prompt token and for each output token; ``of`` says since when."""

    prompt_ms: float
    tpot_ms: float
    of: str


def speed_of(worker: WorkerView) -> Speed | None:
    """None where it has answered nothing yet and no Run has its Recipe."""
    wb = workbench.get_workbench()
    stats = wb.stats(worker.id)
    seen = [each for sample in wb.telemetry(_RECENT_S) for each in sample.workers if each.worker_id == worker.id]
    live = seen[-1].latency.tpot_p50_ms if seen and seen[-1].latency else None
    if live is not None:
        return Speed(_prompt_ms(stats), live, "in the last minute")
    if stats is not None and stats.decode_steps_total and stats.finished_total:
        tpot_ms = 1e3 * stats.decode_s_total / stats.decode_steps_total
        return Speed(_prompt_ms(stats), tpot_ms, "since it was loaded")
    known = (_of_run(run) for run in wb.runs(limit=_RUNS) if run.recipe.load_key == worker.recipe.load_key)
    return next((each for each in known if each is not None), None)


def most_s(plan: CrowdPlan, speed: Speed) -> float:
    """Seconds of one mode, warm-up included, that answers one user after the other; batches take less."""
    one_ms = plan.prompt_tokens * speed.prompt_ms + plan.output_tokens * speed.tpot_ms
    return (plan.users + 1) * one_ms / 1e3


def in_words(plan: CrowdPlan, speed: Speed | None) -> str:
    """A sentence or two under the button."""
    if speed is None:
        return _UNKNOWN
    alone = most_s(plan, speed)
    users, modes = fmt.count(plan.users, "user"), fmt.count(len(plan.modes), "mode")
    return (
        f"At most {fmt.about(alone * len(plan.modes))} for {modes}: {users} one after the other take "
        f"{fmt.about(alone)}, by this worker's TPOT of {fmt.ms(speed.tpot_ms)} {speed.of}. Batches take less."
    )


def _prompt_ms(stats: EngineStats | None) -> float:
    """A prompt token's; 0 where no prompt was counted."""
    return 1e3 * stats.prefill_s_total / stats.prompt_tokens_total if stats and stats.prompt_tokens_total else 0.0


def _of_run(run: Run) -> Speed | None:
    measured = run.measurement
    if run.status != "ok" or measured is None or measured.tpot_ms.p50 is None or measured.ttft_ms.p50 is None:
        return None
    return Speed(measured.ttft_ms.p50 / run.workload.mean_prompt, measured.tpot_ms.p50, "in its last Run")
