"""Where the time of a request went: waiting, prefill, decode, outside the engine; and within a step, from a trace.

Shares are of a whole, 0..1. This file does not know what is to be done about them (``verdicts.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_core.ceilings import Ceilings
from mcp_core.results import Run
from mcp_core.schemes import DeviceKind
from mcp_core.trace_summary import Part, PhaseSummary

__all__ = [
    "RequestShares",
    "StepShares",
    "launch_us",
    "request_shares",
    "start_us",
    "starts_of",
    "step_shares",
]

# What the host needs for one launch, in tiny operations of a bare loop (Ceilings.op_us), transformers' Python and
# the profiler's own cost included. CPU: an operator, of which one calls three others (1.6 us at 2.4 us on the
# bundled and on a tiny model). CUDA: a kernel (26 us on facts/gpu.md's slow host).
_LAUNCH: dict[DeviceKind, float] = {"cpu": 1.0, "cuda": 6.0}
# A CPU's operator costs this much even if it has next to nothing to compute (0.85 us at 2.4 us).
_FIXED = 0.35
# Without a trace: operations that transformers itself starts for a layer of a Llama, and what each takes.
_STARTED_A_LAYER: dict[DeviceKind, int] = {"cpu": 56, "cuda": 38}
_START: dict[DeviceKind, float] = {"cpu": 2.0, "cuda": 6.0}
# A host's tiny operation where it was not measured; us.
_TYPICAL_OP_US = 4.0
# On a CPU an operator's fixed cost is inside its own time: taken from these first, which are hardly more than that.
_SMALL_PARTS: tuple[Part, ...] = ("elementwise", "other", "copy", "kv", "sampling")
_LARGE_PARTS: tuple[Part, ...] = ("gemm", "attention", "dequantization", "communication")


@dataclass(frozen=True, slots=True)
class RequestShares:
    """Of the mean time from sent to last token. ``outside`` is HTTP, tokenizer, event loop and client."""

    queue: float
    prefill: float
    decode: float
    outside: float
    e2e_ms: float


@dataclass(frozen=True, slots=True)
class StepShares:
    """Of one step. ``launching`` is starting operations, ``host`` what else the device waited for."""

    matrices: float
    attention: float
    kv: float
    dequantization: float
    sampling: float
    small: float
    launching: float
    host: float


def request_shares(run: Run) -> RequestShares | None:
    """From the client's clock and the server's own; None where a server gives no timing."""
    measured = run.measurement
    if measured is None or not measured.e2e_ms.mean or measured.decode_ms is None:
        return None
    whole = measured.e2e_ms.mean
    parts = [
        each.mean or 0.0 if each else 0.0 for each in (measured.queue_ms, measured.prefill_ms, measured.decode_ms)
    ]
    whole = max(whole, sum(parts))
    queue, prefill, decode = (part / whole for part in parts)
    return RequestShares(queue, prefill, decode, max(0.0, 1.0 - queue - prefill - decode), whole)


def launch_us(ceilings: Ceilings | None, kind: DeviceKind) -> float:
    """At most what one launch of a trace takes this host, us: a kernel's on CUDA, an operator's on a CPU."""
    return _LAUNCH[kind] * (ceilings.op_us if ceilings else _TYPICAL_OP_US)


def starts_of(layers: int, kind: DeviceKind) -> int:
    """Operations that one eager step of a model with so many layers starts."""
    return layers * _STARTED_A_LAYER[kind]


def start_us(ceilings: Ceilings, kind: DeviceKind) -> float:
    """What starting one of them takes, us."""
    return _START[kind] * ceilings.op_us


def step_shares(phase: PhaseSummary, ceilings: Ceilings | None) -> StepShares:
    """One phase's steps taken apart; the shares add up to 1.

    The gap in which nothing computes is launching as far as so many launches take, and host beyond it. On a CPU the
    fixed cost of every operator is launching, too.
    """
    parts = {part: phase.parts_ms.get(part, 0.0) for part in (*_SMALL_PARTS, *_LARGE_PARTS)}
    kind: DeviceKind = "cpu" if phase.device_busy_ms is None else "cuda"
    launching = min(phase.host_gap_ms, phase.launches * launch_us(ceilings, kind) / 1e3)
    host = phase.host_gap_ms - launching
    if kind == "cpu":
        launching += _taken(parts, phase.launches * _FIXED * launch_us(ceilings, kind) / 1e3)
    whole = sum(parts.values()) + launching + host or 1.0
    return StepShares(
        matrices=(parts["gemm"] + parts["communication"]) / whole,
        attention=parts["attention"] / whole,
        kv=parts["kv"] / whole,
        dequantization=parts["dequantization"] / whole,
        sampling=parts["sampling"] / whole,
        small=(parts["elementwise"] + parts["other"] + parts["copy"]) / whole,
        launching=launching / whole,
        host=host / whole,
    )


def _taken(parts: dict[Part, float], amount_ms: float) -> float:
    """Take ``amount_ms`` from the small parts first, then from the large ones; how much there was."""
    taken = 0.0
    for group in (_SMALL_PARTS, _LARGE_PARTS):
        there = sum(parts[part] for part in group)
        wanted = min(there, amount_ms - taken)
        for part in group:
            parts[part] *= 1.0 - wanted / there if there else 1.0
        taken += wanted
    return taken
