"""Traces made by hand, in the form in which torch writes them: what their shares are is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mcp_core.evaluation.trace_finishing import RAW_STEP, finished
from mcp_core.trace_summary import RecordedStep

PID, ENGINE, LOOP = 10, 11, 12
ABOUT = {"trace_id": "made-by-hand", "device": "cpu", "engine": "transformers"}


@dataclass
class MadeTrace:
    """Events in us. ``step`` begins one; what is added until the next one lies in it."""

    events: list[dict[str, Any]] = field(default_factory=list)
    steps: list[RecordedStep] = field(default_factory=list)
    calls: int = 0
    correlations: int = 0

    def span(
        self, name: str, at: float, dur: float, category: str = "cpu_op", tid: int = ENGINE, **args: Any
    ) -> None:
        """Anything that has a beginning and a length."""
        event = {"ph": "X", "cat": category, "name": name, "pid": PID, "tid": tid, "ts": at, "dur": dur}
        self.events.append(event | ({"args": args} if args else {}))

    def section(self, name: str, at: float, dur: float, tid: int = ENGINE) -> None:
        """A named section."""
        self.span(name, at, dur, "user_annotation", tid)

    def step(
        self, at: float, dur: float, *, prefill: int = 0, batch: int = 1, queued_ms: Sequence[float] = ()
    ) -> None:
        """One step of the engine; ``batch`` 0 is one in which nothing was computed."""
        self.section(RAW_STEP, at, dur)
        if batch:
            self.steps.append(
                RecordedStep(
                    began_s=at / 1e6,
                    ended_s=(at + dur) / 1e6,
                    prefill_tokens=prefill,
                    batch=batch,
                    new_tokens=batch,
                    queued_ms=tuple(queued_ms),
                    index=self.calls,
                )
            )
        self.calls += 1

    def on_device(self, section: str, at: float, dur: float) -> None:
        """A section's second event, written where it launched kernels: from the first to the last one."""
        self.events.append(_on_device(section, at, dur, "gpu_user_annotation", 0))

    def launch(
        self,
        kernel: str,
        at: float,
        runs_at: float,
        dur: float,
        category: str = "kernel",
        tid: int = ENGINE,
    ) -> None:
        """A kernel: its launch on the host takes 2 us."""
        call = {"kernel": "cudaLaunchKernel", "gpu_memcpy": "cudaMemcpyAsync", "gpu_memset": "cudaMemsetAsync"}
        self.correlations += 1
        self.span(call[category], at, 2.0, "cuda_runtime", tid, correlation=self.correlations)
        self.events.append(_on_device(kernel, runs_at, dur, category, self.correlations))

    def graph(self, at: float, kernels: Sequence[tuple[str, float, float]]) -> None:
        """A recorded step: one launch, many kernels of (name, when, how long)."""
        self.correlations += 1
        self.span("cudaGraphLaunch", at, 5.0, "cuda_runtime", correlation=self.correlations)
        self.events += [
            _on_device(name, runs_at, dur, "kernel", self.correlations) for name, runs_at, dur in kernels
        ]

    def document(self, **about: Any) -> dict[str, Any]:
        """As it would be kept."""
        raw = {"schemaVersion": 1, "baseTimeNanoseconds": 0, "traceEvents": [dict(event) for event in self.events]}
        return finished(raw, self.steps, ABOUT | about)


def _on_device(name: str, at: float, dur: float, category: str, correlation: int) -> dict[str, Any]:
    event = {"ph": "X", "cat": category, "name": name, "pid": 0, "tid": 7, "ts": at, "dur": dur}
    return event | {"args": {"correlation": correlation, "stream": 7, "device": 0}}
