"""Where a worker's memory goes: readings over its life, by phase, and by module. Frozen values, no arithmetic.

None is unmeasured. This file does not know how memory is read (``serving/``) or which Run it belongs to.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "MemoryAnalysis",
    "MemoryPhase",
    "MemoryPoint",
    "MemoryReading",
    "MemoryTimeline",
    "ModuleMemory",
]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class MemoryReading(_Value):
    """Memory of a worker at one moment, bytes; None where there is no such counter."""

    resident_bytes: int | None = Field(default=None, description="Of the process, on the host.")
    allocated_bytes: int | None = Field(default=None, description="Of tensors on the device.")
    reserved_bytes: int | None = Field(default=None, description="Of the device allocator's pool.")
    device_used_bytes: int | None = Field(default=None, description="Of the whole device, by its driver.")


class MemoryPoint(MemoryReading):
    """One sample of a timeline."""

    at_s: float = Field(description="Since the worker's start, s.")
    phase: str = Field(description="What the worker did then.")


class MemoryPhase(MemoryReading):
    """One phase of a worker's life, all its stretches together: its readings are the highest sampled ones."""

    name: str = Field(
        description="imports, download, prepare, load, quantize, warm-up, check, idle, prefill, decode."
    )
    seconds: float
    samples: int


class MemoryTimeline(_Value):
    """Memory over a worker's life. Points are thinned where there are many; each stretch keeps its highest."""

    phases: tuple[MemoryPhase, ...] = ()
    points: tuple[MemoryPoint, ...] = ()


class ModuleMemory(_Value):
    """What the tensors of one module occupy; storages shared with an earlier module count there."""

    name: str
    kind: str = Field(description="Name of its class.")
    bytes: int
    dtype: str = Field(default="", description="Of its stored tensors.")


class MemoryAnalysis(_Value):
    """Where a worker's memory goes."""

    timeline: MemoryTimeline
    modules: tuple[ModuleMemory, ...] = ()
    no_snapshot: str = Field(default="", description="Why there is no allocator snapshot; empty where there is.")
