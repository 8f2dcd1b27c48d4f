"""Findings: what explains a Run's time, one small function a cause, in one table.

Every cause is judged by the share of a request's time that it explains, so that causes can be compared: the
client's clock and the server's own split a request, a trace splits a step, and without a trace the roofline says
what reading and computing take at best. This file does not know which of them is the verdict (``verdicts.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mcp_core.errors import DoesNotFit, OutOfMemory
from mcp_core.evaluation.case_view import PhaseView, View, view_of
from mcp_core.evaluation.conditions import caps_itself, device_conditions
from mcp_core.evaluation.time_shares import (
    RequestShares,
    StepShares,
    launch_us,
    start_us,
    starts_of,
)
from mcp_core.evaluation.verdict_values import Case, Confidence, Finding, Line
from mcp_core.evaluation.verdict_words import ms, number, of, percent, size
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.schemes import DeviceKind

__all__ = ["DECIDING", "findings_of"]

# A cause is named when it explains this much of a request's time; what explains next to nothing is not told.
DECIDING, _TOLD = 1 / 3, 0.03
# Products that take less of a ceiling than this are slow by themselves.
_WELL_USED = 0.4
# Shares of time with lowered clocks, and of requests put back, that are no accident.
_THROTTLED, _PREEMPTED = 0.2, 0.1
_OUT_OF_MEMORY = (OutOfMemory.kind, DoesNotFit.kind)


def findings_of(case: Case) -> tuple[Finding, ...]:
    """Every cause that explains something: urgent ones first, then by share."""
    if case.run.measurement is None:
        return tuple(_of_a_failure(case))
    view = view_of(case)
    found = [finding for cause in _TABLE for finding in cause(view) if finding.urgent or finding.share >= _TOLD]
    return tuple(sorted(found, key=lambda each: (not each.urgent, -each.share)))


# One function a cause


def _throttled(view: View) -> Iterator[Finding]:
    telemetry = view.case.telemetry
    if telemetry is None:
        return
    for scope in telemetry.devices:
        for words, share in _held_down(telemetry, scope):
            if share >= _THROTTLED:
                low, high = telemetry.lowest(f"{scope}.sm_clock_mhz"), telemetry.highest(f"{scope}.sm_clock_mhz")
                reasons = ", ".join(telemetry.throttle_reasons.get(scope, ()))
                evidence = [
                    Line("Time with lowered clocks", percent(share), percent(_THROTTLED), "telemetry"),
                    Line("SM clock", f"{number(low)} to {number(high)} MHz", "", "telemetry"),
                    Line("Reasons by NVML", reasons or "not named", "", "telemetry"),
                ]
                sentence = f"Because of {words} the device ran with lowered clocks {percent(share)} of the time."
                yield Finding("throttled", share, sentence, tuple(evidence), "high", urgent=True)


def _held_down(telemetry: RunTelemetry, scope: str) -> Iterator[tuple[str, float]]:
    """What holds clocks down, and how much of the time. A card's own power cap is how the card runs: no fault."""
    heat, slowed = (telemetry.mean(f"{scope}.{name}") or 0.0 for name in ("thermal_throttled", "slowed"))
    power = telemetry.mean(f"{scope}.power_throttled") or 0.0
    itself = caps_itself(device_conditions(telemetry, scope))
    yield "heat", heat
    yield "power", max(0.0 if itself else power, slowed - heat)


def _capacity(view: View) -> Iterator[Finding]:
    """Requests put back, or waiting although fewer run than may: pages are what is short."""
    work, measured, recipe = view.case.run.engine_work, view.case.run.measurement, view.case.recipe
    if work is None or measured is None or not measured.completed or not work.kv_capacity_tokens:
        return
    put_back = work.preemptions / measured.completed
    wanted = view.case.run.workload.at_once(recipe.batching.max_requests)
    tokens = (measured.prompt_tokens + measured.output_tokens) / measured.completed
    fitting = work.kv_capacity_tokens / tokens if tokens else float(wanted)
    waits = view.request.queue if view.request else 0.0
    crowded = recipe.is_paged and fitting < wanted and waits >= _PREEMPTED
    if put_back < _PREEMPTED and not crowded:
        return
    evidence = (
        Line(
            "Requests put back for lack of pages",
            f"{work.preemptions} of {measured.completed}",
            percent(_PREEMPTED),
            "engine",
        ),
        Line("Requests that the pool holds", number(fitting), f"{wanted} asked for at once", "engine"),
        Line("Kept pages given up", f"{work.kv_evictions:,}", "", "engine"),
        Line("Waiting", percent(waits), "", "server's timing"),
    )
    sentence = (
        f"The KV pool holds {work.kv_capacity_tokens:,} tokens, about {number(fitting)} requests of "
        f"{tokens:,.0f}, and {wanted} are asked for at once."
    )
    share = max(waits, min(1.0, put_back * (view.request.prefill if view.request else 0.0)))
    yield Finding(
        "capacity", share, sentence, evidence, "high" if put_back >= _PREEMPTED else "medium", urgent=True
    )


def _queue(view: View) -> Iterator[Finding]:
    request, run = view.request, view.case.run
    if request is None or request.queue <= 0:
        return
    waiting_ms = request.queue * request.e2e_ms
    at_once = 1 if run.recipe.batching.mode == "off" else run.recipe.batching.max_requests
    evidence = (
        _time("Waiting for the first step", waiting_ms, request),
        Line("Load", run.load_words, f"{at_once} served at once", "workload"),
    )
    sentence = f"A request waits {ms(waiting_ms)} of its {ms(request.e2e_ms)} for its turn."
    yield Finding("queue", request.queue, sentence, evidence, "high")


def _launch(view: View) -> Iterator[Finding]:
    traced = [phase for phase in view.phases if phase.shares and phase.traced]
    if not traced:
        yield from _launch_estimated(view)
        return
    share = sum(phase.weight * phase.shares.launching for phase in traced if phase.shares)
    most = max(traced, key=lambda phase: phase.weight)
    assert most.traced is not None
    assert most.shares is not None
    evidence = [
        Line(f"Started in a {most.name} step", f"{most.traced.launches:,.0f} operations", "", "trace"),
        Line(
            "Starting one from Python", f"at most {launch_us(view.case.ceilings, most.kind):.1f} us", "", "ceilings"
        ),
        Line("Nothing computes", of(most.traced.host_gap_ms, most.traced.step_ms), "", "trace"),
        *_utilization(most),
    ]
    sentence = (
        f"Starting {most.traced.launches:,.0f} operations takes {percent(most.shares.launching)} of a {most.name} "
        f"step of {ms(most.traced.step_ms)}."
    )
    yield Finding("launch", share, sentence, tuple(evidence), _confidence(view, share))


def _launch_estimated(view: View) -> Iterator[Finding]:
    """Without a trace: as many operations a layer as transformers is known to start, at this host's pace."""
    case, decode = view.case, view.phases[1]
    if case.model is None or case.ceilings is None or decode.point is None or not decode.point.ms:
        return
    if case.recipe.engine != "transformers" or case.recipe.compile != "off":
        return
    kind: DeviceKind = "cuda" if case.recipe.device.startswith("cuda") else "cpu"
    operations, each_us = starts_of(case.model.architecture.layers, kind), start_us(case.ceilings, kind)
    starting_ms = operations * each_us / 1e3
    share = min(starting_ms / decode.point.ms, max(0.0, 1.0 - decode.reading))
    evidence = (
        Line("Started in a decode step", f"about {operations:,} operations", "", "predicted from the layers"),
        Line("Starting one from Python", f"about {each_us:.1f} us", "", "ceilings"),
        *_utilization(decode),
    )
    sentence = (
        f"Starting about {operations:,} operations should take {ms(min(starting_ms, decode.point.ms))} of a decode "
        f"step of {ms(decode.point.ms)}."
    )
    yield Finding("launch", decode.weight * share, sentence, evidence, "low")


def _bandwidth(view: View) -> Iterator[Finding]:
    share = sum(phase.weight * _reading(phase) for phase in view.phases)
    phase = max(view.phases, key=lambda each: each.weight * _reading(each))
    if share <= 0 or phase.point is None or not phase.point.ms:
        return
    work = phase.point.work
    evidence = [
        *_utilization(phase),
        Line(
            f"Read in a {phase.name} step",
            f"{size(work.bytes)}, {percent(work.kv_bytes / work.bytes)} of it keys and values",
            "",
            "sizes",
        ),
        *_traced_part(phase, "matrices", "Products of matrices"),
        *_traced_part(phase, "dequantization", "Kernels that unpack"),
    ]
    confidence = _confidence(view, share)
    if phase.shares is not None and phase.point.mbu is not None and phase.point.mbu < _WELL_USED:
        sentence = (
            f"Products with {size(work.bytes)} take {percent(_reading(phase))} of a {phase.name} step, and read "
            f"with {percent(phase.point.mbu)} of the memory's bandwidth only: their kernels are slow."
        )
        if _unpacking(phase) > 0:
            sentence = (
                f"Reading {size(work.bytes)} takes {percent(_reading(phase))} of a {phase.name} step; unpacking "
                "takes the kernels longer."
            )
        yield Finding(
            "bandwidth", share, sentence, tuple(evidence), "medium" if confidence == "high" else confidence
        )
        return
    sentence = f"Reading {size(work.bytes)} is what a {phase.name} step of {ms(phase.point.ms)} does"
    if phase.point.mbu is None:
        sentence, confidence = f"{sentence}, at a bandwidth that has no ceiling to hold it against", "low"
    else:
        sentence += f", at {percent(phase.point.mbu)} of the memory's bandwidth"
    yield Finding("bandwidth", share, f"{sentence}.", tuple(evidence), confidence)


def _reading(phase: PhaseView) -> float:
    """Share of a step: by a trace the products and attention, and of unpacking what reading takes at best.

    All of it where its kernels reach a bandwidth at which products count as well used: those multiply what they
    read, and unpack it meanwhile (int8 rows of the 7B shape on an H100: 6.5 GB in 3.15 ms, 67 % of the bandwidth).
    """
    if not phase.memory_side:
        return 0.0
    if phase.shares is None:
        return phase.reading
    products, unpacking = _products(phase.shares), phase.shares.dequantization
    left = max(0.0, phase.reading - products)
    return products + (unpacking if left >= _WELL_USED * unpacking else left)


def _products(shares: StepShares) -> float:
    return shares.matrices + shares.attention + shares.kv


def _compute(view: View) -> Iterator[Finding]:
    share = sum(phase.weight * _computing(phase) for phase in view.phases)
    phase = max(view.phases, key=lambda each: each.weight * _computing(each))
    if share <= 0 or phase.point is None or not phase.point.ms:
        return
    work = phase.point.work
    evidence = [
        *_utilization(phase),
        Line(
            f"Computed in a {phase.name} step" if phase.name == "decode" else "Computed for a prompt",
            f"{work.flops / 1e9:,.1f} GFLOP, {work.intensity:,.0f} a byte",
            "",
            "sizes",
        ),
        *_traced_part(phase, "matrices", "Products of matrices"),
    ]
    confidence = _confidence(view, share)
    sentence = f"{work.flops / 1e9:,.1f} GFLOP are computed in {ms(phase.point.ms)} of {phase.name}"
    if phase.point.mfu is None:
        sentence, confidence = f"{sentence}, at a rate that has no ceiling to hold it against", "low"
    else:
        sentence += f", at {percent(phase.point.mfu)} of the device's rate"
        if phase.shares is not None and phase.point.mfu < _WELL_USED:
            sentence += ": its products are slow, or others hold the cores"
            confidence = "medium" if confidence == "high" else confidence
    yield Finding("compute", share, f"{sentence}.", tuple(evidence), confidence)


def _computing(phase: PhaseView) -> float:
    """Share of a step: by a trace the products and attention, else what computing takes at best."""
    if phase.memory_side:
        return 0.0
    if phase.shares is not None:
        return phase.shares.matrices + phase.shares.attention
    return min(1.0, phase.point.mfu or 0.0) if phase.point else 0.0


def _dequantization(view: View) -> Iterator[Finding]:
    """Only a trace tells: time in kernels that unpack, beyond what reading the packed bytes takes."""
    share = sum(phase.weight * _unpacking(phase) for phase in view.phases)
    phase = max(view.phases, key=lambda each: each.weight * _unpacking(each))
    if share <= 0 or phase.shares is None or phase.traced is None:
        return
    took_ms = phase.traced.parts_ms.get("dequantization", 0.0)
    evidence = [
        Line("Unpacking", of(took_ms, phase.traced.step_ms), percent(DECIDING), "trace"),
        *(Line(name, f"{ms(each_ms)} a step", "", "trace") for name, each_ms in _unpackers(view.case, phase)),
        *_utilization(phase),
    ]
    sentence = (
        f"Unpacking weights of {view.case.recipe.quantization.scheme} takes "
        f"{percent(phase.shares.dequantization)} of a {phase.name} step."
    )
    yield Finding("dequantization", share, sentence, tuple(evidence), _confidence(view, share))


def _unpackers(case: Case, phase: PhaseView) -> list[tuple[str, float]]:
    """The three operators or kernels that unpack longest in this phase, with their own time in a step, ms."""
    took: dict[str, float] = {}
    for row in case.trace.operators if case.trace else ():
        if row.part == "dequantization" and row.phase == phase.name:
            own_ms = row.cpu_self_ms if phase.kind == "cpu" else row.device_self_ms
            took[row.name] = took.get(row.name, 0.0) + (own_ms or 0.0)
    steps = phase.traced.steps if phase.traced else 1
    longest = sorted(took.items(), key=lambda each: -each[1])[:3]
    return [(name, total_ms / steps) for name, total_ms in longest if total_ms > 0]


def _unpacking(phase: PhaseView) -> float:
    if phase.shares is None:
        return 0.0
    read_meanwhile = _reading(phase) - _products(phase.shares)
    return phase.shares.dequantization - max(0.0, read_meanwhile if phase.memory_side else 0.0)


def _host(view: View) -> Iterator[Finding]:
    outside = view.request.outside if view.request else 0.0
    waits = [phase.weight * (phase.shares.host + phase.shares.sampling) for phase in view.phases if phase.shares]
    share = outside + sum(waits)
    if share <= 0:
        return
    evidence = []
    if view.request is not None:
        evidence.append(
            _time("Outside the engine: HTTP, tokenizer, client", outside * view.request.e2e_ms, view.request)
        )
    phase = view.longest
    if phase.traced is not None and phase.shares is not None:
        waiting_ms = phase.shares.host * phase.traced.step_ms
        what = f"Waiting in a {phase.name} step beyond starting operations"
        evidence.append(Line(what, of(waiting_ms, phase.traced.step_ms), percent(DECIDING), "trace"))
        sections = sorted(phase.traced.sections_ms.items(), key=lambda each: -each[1])
        evidence += [Line(f"Section {name}", f"{ms(took)} a step", "", "trace") for name, took in sections[:3]]
    sentence = f"{percent(share)} of a request's time passes in Python, outside the model's operations."
    yield Finding("host", share, sentence, tuple(evidence), _confidence(view, share))


_TABLE: tuple[Callable[[View], Iterator[Finding]], ...] = (
    _throttled,
    _capacity,
    _queue,
    _launch,
    _bandwidth,
    _compute,
    _dequantization,
    _host,
)


def _of_a_failure(case: Case) -> Iterator[Finding]:
    failure = case.run.failure
    if failure is not None and failure.kind in _OUT_OF_MEMORY:
        evidence = (Line("How it ended", failure.message, "", "Run"),)
        yield Finding("capacity", 1.0, "It did not fit into memory.", evidence, "high", urgent=True)


# Words


def _confidence(view: View, share: float) -> Confidence:
    """A trace and ceilings: high. One of them: medium. Little of the time explained is never high."""
    known = (view.case.trace is not None) + (view.case.ceilings is not None)
    if known == 2:
        return "high" if share >= DECIDING else "medium"
    return "medium" if known else "low"


def _utilization(phase: PhaseView) -> Iterator[Line]:
    if phase.point is None:
        return
    if phase.point.mbu is not None:
        beyond = "beyond memory: part of it stays in the CPU's caches" if phase.point.mbu > 1 else ""
        yield Line(f"MBU of {phase.name}", percent(phase.point.mbu), beyond, "sizes, ceilings")
    if phase.point.mfu is not None:
        yield Line(f"MFU of {phase.name}", percent(phase.point.mfu), "", "sizes, ceilings")


def _traced_part(phase: PhaseView, part: str, words: str) -> Iterator[Line]:
    share = getattr(phase.shares, part) if phase.shares is not None else 0.0
    if share:
        yield Line(words, f"{percent(share)} of a step", "", "trace")


def _time(what: str, part_ms: float, request: RequestShares) -> Line:
    return Line(what, of(part_ms, request.e2e_ms), percent(DECIDING), "server's and client's timing")
