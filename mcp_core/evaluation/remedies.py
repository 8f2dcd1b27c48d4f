"""Remedies: for each cause the changes of a Recipe that usually help, the first that this machine can honour.

What is expected is bounded by the share of time that the cause explains (Amdahl's law), or measured where the store
holds a Run of the changed Recipe. This file does not know how a cause is found (``findings.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mcp_core import conflicts
from mcp_core.ceilings import Ceilings
from mcp_core.decision.counterparts import counterpart
from mcp_core.decision.recipe_changes import changed_fields, with_companions
from mcp_core.errors import McpError
from mcp_core.evaluation.roofline import decode_work, product_of
from mcp_core.evaluation.verdict_values import Case, Cause, Change, Finding
from mcp_core.evaluation.verdict_words import times
from mcp_core.llama_cpp import with_engine
from mcp_core.models.footprint import Predictor
from mcp_core.recipe import Recipe, SchemeName
from mcp_core.schemes import SCHEMES, DeviceKind

__all__ = ["advice_for", "change_for"]

# A change of the Recipe, and in words what it does.
_Option = tuple[Recipe, str]
_KV_HEAVY = 0.5
# Schemes whose kernels read packed weights. CPU: fastest first; torchao unpacks int8 weights at every use: one
# step of SmolLM2-135M took 48 ms in bf16, 34 in NF4, 50 in int4 and 58 in int8 (one thread, others at work).
# GPU: int8 is ahead of bf16 up to 16 sequences; int4 is faster still, but up to 4 only (docs/h100.md).
_FEWER_BYTES: dict[DeviceKind, tuple[SchemeName, ...]] = {
    "cpu": ("bnb-nf4", "torchao-int4-weight-only"),
    "cuda": ("torchao-int8-weight-only", "torchao-int4-weight-only", "bnb-nf4"),
}
# Up to so many sequences int4's kernels are the fastest on a GPU.
_INT4_SEQUENCES = 4
_AS_FAST = 1.03  # less is not worth a change


def change_for(finding: Finding, case: Case) -> Change | None:
    """The first change of the cause's table that can run here and that is expected to help."""
    for recipe, says in _TABLE.get(finding.cause, _nothing)(case):
        if recipe == case.recipe or recipe.conflicts(case.machine):
            continue
        change = _expected(recipe, says, finding, case)
        if change is not None:
            return change
    return None


def advice_for(cause: Cause, case: Case) -> str:
    """What no field of the Recipe does; empty where a change says enough."""
    return _ADVICE.get(cause, "")


_ADVICE: dict[Cause, str] = {
    "throttled": "No field of the Recipe changes this: see to cooling or the power limit, then measure again. "
    "Figures of this Run are not to be compared.",
    "host": "Look at the sections and operators of the profile: what runs between the model's steps is what to "
    "shorten.",
}


# One function a cause: its options, the likeliest first


def _nothing(case: Case) -> Iterator[_Option]:
    return iter(())


def _against_launching(case: Case) -> Iterator[_Option]:
    for recipe in with_companions(case.recipe, {"compile": "graphs"}):
        yield recipe, "Record decode steps as CUDA graphs: a whole step is one start."
    if case.recipe.quantization.scheme == "bnb-int8":
        for recipe in with_companions(_repacked(case, "torchao-int8-weight-only"), {"compile": "graphs"}):
            yield recipe, "LLM.int8 asks the host at every layer; int8 weight-only is as small, and is recorded."
    if case.run.workload.at_once(2) > 1:
        yield from _batched(case, "More sequences share every operation that is started.")
    yield from _by_llama_cpp(case, "llama.cpp starts its operations from C++, not from Python.")
    yield _with(case, {"compile": "compiled"}), "torch compiles decode steps: fewer, larger operations."


def _against_reading(case: Case) -> Iterator[_Option]:
    work = case.roofline.decode.work if case.roofline else None
    if work is not None and work.kv_bytes > _KV_HEAVY * work.bytes:
        yield _with(case, {"kv.kind": "quantized-fp8"}), "Keys and values in half the bytes."
    if case.run.workload.at_once(2) > 1:
        yield from _batched(case, "Weights are read once for all sequences of a step.")
    yield from _by_llama_cpp(case, "llama.cpp reads the GGUF's packed weights as they are.")
    for scheme in _FEWER_BYTES[_kind(case)]:
        words = f"{SCHEMES[scheme].title}: fewer bytes to read for every token."
        yield _scheme(case, scheme), words


def _against_computing(case: Case) -> Iterator[_Option]:
    for dtype in ("bf16", "fp16"):
        yield _with(case, {"dtype": dtype}), f"Products in {dtype}."
    yield _with(case, {"switches.tf32": True}), "fp32 products in TF32."
    threads = conflicts.resolve(case.recipe, case.machine).threads or 1
    if _kind(case) == "cpu" and case.machine.cores > threads:
        yield _with(case, {"threads": case.machine.cores}), f"All {case.machine.cores} cores of this machine."
    yield _scheme(case, "torchao-int8-dynamic"), "Products of int8 with int8."


def _against_unpacking(case: Case) -> Iterator[_Option]:
    yield from _by_llama_cpp(case, "llama.cpp multiplies packed weights without unpacking them first.")
    if _kind(case) == "cuda":
        yield from _by_faster_kernels(case)
    yield _scheme(case, "none"), "Dense weights need no unpacking; they take more memory."


def _by_faster_kernels(case: Case) -> Iterator[_Option]:
    """Decode steps of the 7B shape as CUDA graphs, H100: int4 4.96 ms, int8 5.48, NF4 5.98 (docs/h100.md)."""
    now, sequences = case.recipe.quantization.scheme, case.roofline.sequences if case.roofline else 1.0
    if now in ("bnb-nf4", "bnb-fp4") and sequences <= _INT4_SEQUENCES:
        yield _repacked(case, "torchao-int4-weight-only"), "As many bits, and a kernel that unpacks them faster."
    if now not in ("torchao-int8-weight-only", "torchao-int8-dynamic"):
        yield _repacked(case, "torchao-int8-weight-only"), "int8 rows take little to unpack; they take more memory."
    if now != "torchao-int8-dynamic":
        yield _repacked(case, "torchao-int8-dynamic"), "int8 weights are multiplied as they are."


def _against_waiting(case: Case) -> Iterator[_Option]:
    concurrency = case.run.workload.concurrency
    yield from _batched(case, "Requests join and leave at every step instead of waiting for each other.")
    if concurrency > case.recipe.batching.max_requests:
        yield _with(case, {"batching.max_requests": concurrency}), f"{concurrency} requests are held at once."


def _against_python(case: Case) -> Iterator[_Option]:
    for recipe in with_companions(case.recipe, {"compile": "graphs"}):
        yield recipe, "Recorded steps leave Python out of them."
    yield from _by_llama_cpp(case, "llama.cpp's loop is C++.")


def _against_lack_of_pages(case: Case) -> Iterator[_Option]:
    work, measured = case.run.engine_work, case.run.measurement
    if work is None or measured is None or not measured.completed:
        yield from _smaller(case)
        return
    tokens = (measured.prompt_tokens + measured.output_tokens) / measured.completed
    wanted = case.run.workload.at_once(case.recipe.batching.max_requests)
    if case.recipe.batching.kv_blocks is not None:
        factor = max(2.0, 1.25 * wanted * tokens / max(1, work.kv_capacity_tokens))
        blocks = round(case.recipe.batching.kv_blocks * factor)
        yield (
            _with(case, {"batching.kv_blocks": blocks}),
            f"A pool of {blocks:,} pages holds {wanted} such requests.",
        )
    yield from _smaller(case)


def _smaller(case: Case) -> Iterator[_Option]:
    for scheme in ("torchao-int8-weight-only", "bnb-nf4"):
        words = f"{SCHEMES[scheme].title}: what the weights leave free."
        yield _scheme(case, scheme), words


_TABLE: dict[Cause, Callable[[Case], Iterator[_Option]]] = {
    "launch": _against_launching,
    "bandwidth": _against_reading,
    "compute": _against_computing,
    "dequantization": _against_unpacking,
    "queue": _against_waiting,
    "host": _against_python,
    "capacity": _against_lack_of_pages,
}


# Parts of options


def _batched(case: Case, says: str) -> Iterator[_Option]:
    if case.recipe.batching.mode == "continuous":
        return
    for recipe in with_companions(case.recipe, {"batching.mode": "continuous"}):
        yield recipe, says


def _by_llama_cpp(case: Case, says: str) -> Iterator[_Option]:
    if case.recipe.engine == "transformers" and case.recipe.model.source in ("bundled", "gguf"):
        yield with_engine(case.recipe, "llama.cpp"), says


def _scheme(case: Case, scheme: str) -> Recipe:
    """Another scheme with its own options; the Recipe itself where the weights came quantized or are so already."""
    before, after = (SCHEMES.get(name) for name in (case.recipe.quantization.scheme, scheme))  # type: ignore[call-overload]
    smaller = after is not None and before is not None and 0 < before.bits <= after.bits
    if smaller and scheme != "torchao-int8-dynamic":
        return case.recipe
    return _repacked(case, scheme)


def _repacked(case: Case, scheme: str) -> Recipe:
    """Also in a scheme of as many bits; the Recipe itself where the weights came quantized."""
    if case.model is not None and case.model.quantized is not None:
        return case.recipe
    return _with(case, {"quantization": {"scheme": scheme, "skip": list(case.recipe.quantization.skip)}})


def _kind(case: Case) -> DeviceKind:
    device = case.machine.device(case.recipe.device)
    return device.kind if device else "cpu"


def _with(case: Case, changes: Mapping[str, Any]) -> Recipe:
    return case.recipe.replace(changes)


# What is expected


def _expected(recipe: Recipe, says: str, finding: Finding, case: Case) -> Change | None:
    """Measured where there is such a Run, else bounded; None where it is known not to help."""
    fields = changed_fields(case.recipe, recipe)
    known = counterpart(case.run, recipe, case.runs)
    if known is not None:
        ratio = _measured_ratio(case, known)
        words = f"Measured here: {ratio:.2f} times the output tokens/s."
        level = known.evidence
        return Change(recipe, fields, says, words, level, known.id) if ratio > _AS_FAST else None
    bound = _bound(recipe, finding, case)
    if bound <= _AS_FAST:
        return None
    return Change(recipe, fields, says, f"At most {times(bound)} as fast, were all of that time gone.")


def _measured_ratio(case: Case, known: Any) -> float:
    before = case.run.measurement.output_tok_s if case.run.measurement else None
    after = known.measurement.output_tok_s if known.measurement else None
    return after / before if before and after else 0.0


def _bound(recipe: Recipe, finding: Finding, case: Case) -> float:
    """How many times as fast at most: Amdahl's law, with what remains of the cause's time."""
    remaining = 0.0
    if finding.cause == "bandwidth":
        remaining = _bytes_ratio(recipe, case)
    elif finding.cause == "compute":
        remaining = _rate_ratio(recipe, case.recipe, case.ceilings)
    return 1.0 / max(1e-2, 1.0 - finding.share * (1.0 - remaining))


def _bytes_ratio(recipe: Recipe, case: Case) -> float:
    """Bytes of a decode step and sequence under the changed Recipe over those under this one."""
    if case.model is None or case.roofline is None:
        return 0.0
    batched = recipe.batching.mode != case.recipe.batching.mode
    sequences = case.run.workload.at_once(recipe.batching.max_requests) if batched else case.roofline.sequences
    try:
        work = decode_work(_predictor(recipe, case), case.roofline.context_tokens, sequences)
    except McpError:
        return 1.0  # it does not go with this model
    return (work.bytes / sequences) / (case.roofline.decode.work.bytes / case.roofline.sequences)


def _predictor(recipe: Recipe, case: Case) -> Predictor:
    assert case.model is not None
    return Predictor(conflicts.resolve(recipe, case.machine), case.model, case.machine)


def _rate_ratio(recipe: Recipe, before: Recipe, ceilings: Ceilings | None) -> float:
    """Time of a product under the changed Recipe over that under this one, by this device's own rates."""
    if recipe.threads != before.threads:
        return (before.threads or 1) / (recipe.threads or 1)
    rates = ceilings.matmul_flop_s if ceilings else {}
    old, new = (rates.get(product) if (product := product_of(each)) else None for each in (before, recipe))
    return old / new if old and new else 1.0
