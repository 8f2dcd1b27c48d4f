"""TraceSummary: what a profile of a worker says, by phase, part and operator.

Frozen values. This file does not know how a trace is recorded (``inference/profiling.py``) or read
(``evaluation/trace_reading.py``). Times are ms; what was not recorded is None, never 0.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "PARTS",
    "OperatorRow",
    "Part",
    "Phase",
    "PhaseSummary",
    "RawTrace",
    "RecordedStep",
    "SectionTotal",
    "TraceSummary",
]

# What a piece of work is for. On a CPU an operator has a part, on a GPU a kernel has one.
Part = Literal[
    "gemm",  # matrix products: reading weights, mostly
    "attention",  # scores and their sum over values
    "dequantization",  # packed weights or activations converted, and products fused with that
    "kv",  # keys and values written, gathered, reordered
    "elementwise",  # norms, activations, rotations, additions
    "sampling",  # logits to tokens
    "communication",  # between devices
    "copy",  # to another device, dtype or layout, and fills
    "other",
]
PARTS: tuple[Part, ...] = get_args(Part)
Phase = Literal["prefill", "decode"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class PhaseSummary(_Value):
    """The engine's steps of one kind. All times are means per step."""

    steps: int = Field(description="Steps of this kind in the trace; a step with any prompt token is a prefill.")
    sequences: float | None = Field(default=None, description="Requests that took part in a step, mean.")
    tokens: float | None = Field(
        default=None, description="Mean of a step: prompt tokens of a prefill, sequences of a decode step."
    )
    step_ms: float = Field(description="Wall time of a step, the profiler's own cost included.")
    device_busy_ms: float | None = Field(
        default=None, description="Time with at least one kernel or copy on the GPU; None on a CPU."
    )
    parts_ms: dict[Part, float] = Field(
        default_factory=dict, description="GPU: kernel time by part. CPU: self time of operators by part."
    )
    host_gap_ms: float = Field(
        description="GPU: step less busy. CPU: step less time in any operator (Python, scheduling)."
    )
    launches: float = Field(
        description="GPU: launch calls a step, a recorded graph is one. CPU: operators called a step."
    )
    sections_ms: dict[str, float] = Field(
        default_factory=dict,
        description='Own host time of sections in these steps, a step; waiting for the GPU is "device wait".',
    )


class SectionTotal(_Value):
    """A named section over the whole trace, in every thread; "queued" are requests that waited for a first step."""

    name: str
    calls: int
    total_ms: float = Field(description="From enter to leave, those inside it included.")
    self_ms: float = Field(description="Less the sections inside it.")


class OperatorRow(_Value):
    """All calls of one operator or kernel in one phase and section."""

    name: str
    kind: Literal["operator", "kernel"]
    part: Part
    phase: Phase | None = Field(default=None, description="None outside the engine's steps.")
    section: str = Field(default="", description="Innermost named section around it.")
    calls: int
    cpu_self_ms: float | None = Field(default=None, description="On the host, less the operators it called.")
    cpu_total_ms: float | None = Field(default=None, description="On the host.")
    device_self_ms: float | None = Field(default=None, description="Kernels that it launched itself.")
    device_total_ms: float | None = Field(default=None, description="Kernels launched within it.")
    memory_bytes: int | None = Field(
        default=None, description="Allocated less freed within it; recorded with memory only."
    )
    shapes: str = Field(default="", description="Its most frequent input shapes; recorded with shapes only.")


class RecordedStep(_Value):
    """One step of the engine as the recording process saw it; times are time.perf_counter()."""

    began_s: float
    ended_s: float
    prefill_tokens: int = Field(description="Prompt tokens in it; 0 is a decode step.")
    batch: int = Field(description="Requests that took part.")
    new_tokens: int = Field(default=0, description="Tokens that were chosen in it.")
    index: int = Field(default=0, description="Which of the trace's step events; some steps compute nothing.")
    queued_ms: tuple[float, ...] = Field(
        default=(), description="Of each request that was first worked on in it: from its arrival to this step."
    )


class RawTrace(_Value):
    """A trace as torch wrote it, on the worker's machine, and the steps in it, in order."""

    path: str
    steps: tuple[RecordedStep, ...]


class TraceSummary(_Value):
    """One trace of a worker, read."""

    schema_version: Literal[1] = 1
    trace_id: str
    path: str = Field(default="", description="The trace's file on the machine that recorded it.")
    created: datetime | None = None
    run_id: str | None = Field(default=None, description="The Run that was measured while this was recorded.")
    recipe_fingerprint: str | None = None
    title: str = Field(default="", description="Model and scheme, for people.")
    engine: str = "transformers"
    device: str = Field(description="cpu, cuda:0 (NVIDIA H100).")
    events: int = Field(description="Events of the trace.")
    truncated: str = Field(default="", description="What was cut to keep the file small; empty: nothing.")
    wall_ms: float = Field(description="From the first recorded step's start to the last one's end.")
    prefill: PhaseSummary | None = None
    decode: PhaseSummary | None = None
    sections: tuple[SectionTotal, ...] = ()
    operators: tuple[OperatorRow, ...] = Field(default=(), description="The longest by self time.")

    def phase(self, name: Phase) -> PhaseSummary | None:
        """The steps of one kind."""
        return self.prefill if name == "prefill" else self.decode
