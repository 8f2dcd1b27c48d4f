"""Recording: torch.profiler over the engine's own steps, started and stopped on the engine's thread.

Written are raw Chrome traces and what is known of each recorded step. This file does not know what a step is, who
asked, or how a trace is read (``evaluation/trace_reading.py``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler import record_function

from mcp_core.errors import McpError
from mcp_core.inference.mode import StepOutcome
from mcp_core.models.load_errors import first_line
from mcp_core.profile_plan import ProfilePlan
from mcp_core.sections import marked_by
from mcp_core.trace_summary import RawTrace, RecordedStep

__all__ = ["STEP", "Recording"]

_log = logging.getLogger(__name__)

# Name of the section around each step.
STEP = "engine step"


class Recording:
    """One profile. The engine's thread calls ``step`` until it has ended; another one waits for that.

    ``stop_asked`` may be set from any thread; the engine's then calls ``finish``.
    """

    def __init__(self, plan: ProfilePlan, folder: Path) -> None:
        self.plan = plan
        self.stop_asked = False
        self._traces: list[RawTrace] = []
        self._error: McpError | None = None
        self._done = threading.Event()
        self._folder = folder
        self._name = f"raw-{uuid.uuid4().hex}"
        self._count = 0
        self._cycle: _Cycle | None = None

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to record."""
        return self._done.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within so long."""
        return self._done.wait(timeout_s)

    def result(self) -> tuple[RawTrace, ...]:
        """What was recorded. Raises McpError when nothing was."""
        if self._error is not None:
            raise self._error
        if not self._traces:
            raise McpError("Nothing was recorded: no step came in time.", "Send requests to the worker meanwhile.")
        return tuple(self._traces)

    def step(self, work: Callable[[], StepOutcome | None]) -> None:
        """Do one step of the engine, recorded if its turn has come. Raises what ``work`` raises."""
        if self._count % self._cycle_steps == self.plan.wait and self._cycle is None:
            self._attempt(self._begin_cycle)
        began_s = time.perf_counter()
        with record_function(STEP) if self._cycle else contextlib.nullcontext():
            outcome = work()
        computed = outcome is not None and _begun(outcome)[1] > 0
        if self._cycle is not None:
            self._cycle.note(outcome if computed else None, began_s)
        if not computed or self.ended:
            return
        self._count += 1
        if self._cycle is not None:
            self._attempt(self._advance_cycle)
        if self._count >= self.plan.total_steps:
            self.finish()

    def finish(self) -> None:
        """Stop; steps that were recorded so far in the running repeat are written."""
        if not self.ended:
            self._attempt(self._end_cycle)
            self._done.set()

    @property
    def _cycle_steps(self) -> int:
        return self.plan.wait + self.plan.warmup + self.plan.steps

    def _begin_cycle(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._cycle = _Cycle(self.plan)

    def _advance_cycle(self) -> None:
        assert self._cycle is not None
        self._cycle.advance()
        if self._count % self._cycle_steps == 0:
            self._end_cycle()

    def _end_cycle(self) -> None:
        cycle, self._cycle = self._cycle, None
        if cycle is None:
            return
        path = self._folder / f"{self._name}-{len(self._traces) + 1}.json"
        if steps := cycle.end(path):
            self._traces.append(RawTrace(path=str(path), steps=steps))

    def _attempt(self, action: Callable[[], None]) -> None:
        """The profiler's errors, of any kind, end the profile and nothing else."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - see above
            _log.warning("a profile failed: %s", first_line(error))
            self._error = McpError(
                f"The profile was not recorded: {first_line(error)}.", "Try fewer steps, or without stacks."
            )
            self._cycle = None  # never stopped twice: that crashes the process (torch 2.13)
            self._done.set()


class _Cycle:
    """Warm-up and recorded steps of one repeat, with a profiler of their own. Starts at once."""

    def __init__(self, plan: ProfilePlan) -> None:
        self._steps: list[RecordedStep] = []
        self._calls = 0
        self._warmup = plan.warmup
        self._entered = ExitStack()
        self._profiler = _profiler(plan)
        self._profiler.start()
        self._entered.enter_context(marked_by(record_function))

    def note(self, outcome: StepOutcome | None, began_s: float) -> None:
        """A step event has ended; without ``outcome`` nothing was computed in it."""
        if self._warmup == 0:
            if outcome is not None:
                self._steps.append(_recorded(outcome, began_s, self._calls))
            self._calls += 1

    def advance(self) -> None:
        """The step counts: so many are warm-up, then they are recorded."""
        self._warmup = max(0, self._warmup - 1)
        self._profiler.step()

    def end(self, path: Path) -> tuple[RecordedStep, ...]:
        """Stop, write what was recorded to ``path`` and return its steps; none: nothing is written."""
        self._entered.close()
        self._profiler.stop()
        steps = tuple(self._steps)
        if steps:
            self._profiler.export_chrome_trace(str(path))
        return steps


def _profiler(plan: ProfilePlan) -> Any:
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity, profile, schedule

    activities = [ProfilerActivity.CPU] if "cpu" in plan.activities else []
    if "cuda" in plan.activities and torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        # Recorded steps are CUDA graphs: taking CUPTI down and up again beside them crashes (pytorch#75504).
        os.environ.update(DISABLE_CUPTI_LAZY_REINIT="1", TEARDOWN_CUPTI="0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "not using warmup": that was asked for
        steps = schedule(wait=0, warmup=plan.warmup, active=plan.steps, repeat=1)
    return profile(
        activities=activities or [ProfilerActivity.CPU],
        schedule=steps,
        record_shapes=plan.shapes,
        profile_memory=plan.memory,
        with_stack=plan.stacks,
        acc_events=False,
        # Text is made and unmade in other threads. Watching them all loses allocations (torch 2.13).
        experimental_config=_ExperimentalConfig(profile_all_threads=not plan.memory),
    )


def _begun(outcome: StepOutcome) -> tuple[int, int]:
    """Prompt tokens and sequences of the pass whose kernels were launched in the step."""
    return outcome.begun or (outcome.prefill_tokens, outcome.batch)


def _recorded(outcome: StepOutcome, began_s: float, index: int) -> RecordedStep:
    prefill_tokens, batch = _begun(outcome)
    return RecordedStep(
        index=index,
        began_s=began_s,
        ended_s=time.perf_counter(),
        prefill_tokens=prefill_tokens,
        batch=batch,
        new_tokens=sum(each.token is not None for each in outcome.outcomes),
        queued_ms=tuple((began_s - request.arrived_s) * 1e3 for request, _ in outcome.started),
    )
