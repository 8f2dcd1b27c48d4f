"""How long judging fidelity takes, before it starts: what a sweep or a decision lacks, and an estimate for each.

This file does not know how fidelity is measured (``fidelity.py``) or in which order cells are judged.
"""

from __future__ import annotations

from collections.abc import Sequence

from mcp_core.decision.decision import Missing
from mcp_core.decision.store import Store
from mcp_core.errors import McpError
from mcp_core.evaluation.fidelity_plan import Plan, plan_of
from mcp_core.evaluation.fidelity_text import DECODED_TOKENS
from mcp_core.evaluation.served_fidelity import FLOOR_DOCUMENTS
from mcp_core.evaluation.sweep_cells import CheckedCell, Resolve
from mcp_core.hardware import Hardware
from mcp_core.models.architecture import DTYPE_BYTES
from mcp_core.sweep_plan import SweepPlan

__all__ = ["fidelity_seconds", "judging_seconds", "with_times"]

# Of the process, and of reading a model's weights: as a worker's (sweep_budget.py).
_START_S, _LOAD_BYTES_S = 9.0, 0.15e9
# Parameters times tokens that a pass takes in a second, and bytes of weights that decoding reads. On a CPU measured
# on one core with 135M parameters; on a GPU not measured, and low for any that runs such models.
_PASS_S = {"cpu": 5e10, "cuda": 5e12}
_DECODE_BYTES_S = {"cpu": 5e9, "cuda": 2e11}
# Parameters times tokens that llama.cpp scores in a second, a token a step: measured on one core, 135M in Q4_1.
_STEP_S = 8e9
# Of vLLM and SGLang, from start to ready: not measured by this program; it is their usual minute.
_FOREIGN_START_S = 60.0
# The reference once, a packed candidate as long as two of it; the noise floor is the reference twice more.
_PASSES, _FLOOR_PASSES = 3, 2
_CHARACTERS_A_TOKEN = 3.4


def fidelity_seconds(
    plan: SweepPlan, checked: Sequence[CheckedCell], hardware: Hardware, store: Store
) -> tuple[float, ...]:
    """Of each answer that runnable cells share and that is not known yet, s; none where the plan judges nothing.
    Raises StoreError."""
    if not plan.judges_fidelity:
        return ()
    seconds: dict[str, float] = {}
    floors: set[str] = set()
    for each in checked:
        asked = _asked(each, hardware)
        key = "" if asked is None else asked.key or asked.recipe.numerics_key
        if asked is None or key in seconds or store.fidelity(key) is not None:
            continue
        seconds[key] = _seconds(asked, with_floor=_finds_floor(asked, floors, store))
    return tuple(seconds.values())


def judging_seconds(asked: Plan, store: Store) -> float:
    """Of one answer that has to be measured, s. Raises StoreError."""
    return _seconds(asked, with_floor=_finds_floor(asked, set(), store))


def with_times(
    missing: Sequence[Missing], hardware: Hardware, resolve: Resolve, store: Store
) -> tuple[Missing, ...]:
    """Each fidelity that a decision lacks with its time, where that can be told; without those of which is known
    that nothing can be measured. Raises StoreError."""
    floors: set[str] = set()
    timed = (each if each.workload else _timed(each, hardware, resolve, store, floors) for each in missing)
    return tuple(each for each in timed if each is not None)


def _timed(each: Missing, hardware: Hardware, resolve: Resolve, store: Store, floors: set[str]) -> Missing | None:
    try:
        asked = plan_of(each.recipe, hardware, resolve(each.recipe.model))
    except McpError:  # as the job will say
        return each
    told = asked.without_measuring()
    if told is not None and told.status == "not-measurable":
        return None
    seconds = _seconds(asked, with_floor=_finds_floor(asked, floors, store)) if told is None else _START_S
    return each.model_copy(update={"seconds": seconds})


def _finds_floor(asked: Plan, floors: set[str], store: Store) -> bool:
    """Whether it is the first of its reference; noted in ``floors``."""
    floor = asked.floor_key or asked.reference.numerics_key
    is_known = floor in floors or store.noise_floor(floor) is not None
    floors.add(floor)
    return not is_known


def _asked(each: CheckedCell, hardware: Hardware) -> Plan | None:
    """None for what is not measured: it cannot run, or its plan tells the answer."""
    if each.refused is not None or each.resolved is None:
        return None
    try:
        asked = plan_of(each.cell.recipe, hardware, each.resolved)
    except McpError:  # its text is known to it
        return None
    return asked if asked.without_measuring() is None else None


def _seconds(asked: Plan, *, with_floor: bool) -> float:
    if asked.path == "endpoint":
        return _served_seconds(asked, with_floor=with_floor)
    architecture = asked.resolved.architecture
    device = asked.recipe.device.split(":")[0]
    weights = architecture.parameters * DTYPE_BYTES[asked.reference.dtype]
    passes = _PASSES + (_FLOOR_PASSES if with_floor else 0)
    if asked.path == "prefill":
        scoring_s = passes * architecture.parameters * _tokens(asked) / _PASS_S[device]
    else:
        scoring_s = passes * DECODED_TOKENS * weights / _DECODE_BYTES_S[device]
    return _START_S + 2 * weights / _LOAD_BYTES_S + scoring_s


def _served_seconds(asked: Plan, *, with_floor: bool) -> float:
    """Two servers, or three with the noise floor's, which scores a part of the texts."""
    architecture, recipe = asked.resolved.architecture, asked.recipe
    load_s = _START_S + architecture.parameters * DTYPE_BYTES[asked.reference.dtype] / _LOAD_BYTES_S
    work = architecture.parameters * _tokens(asked)
    pass_s = work / _PASS_S[recipe.device.split(":")[0]]
    floor_share = min(1.0, FLOOR_DOCUMENTS / len(asked.text.documents))
    floor_s = load_s + floor_share * pass_s if with_floor else 0.0
    candidate_s = load_s + work / _STEP_S if recipe.engine == "llama.cpp" else load_s + _FOREIGN_START_S + pass_s
    return load_s + pass_s + floor_s + candidate_s


def _tokens(asked: Plan) -> float:
    """Of the documents that the context holds."""
    most = asked.candidate.kv.max_context or asked.resolved.architecture.context
    texts = (each.text or "".join(message.content for message in each.messages) for each in asked.text.documents)
    lengths = (len(text) / _CHARACTERS_A_TOKEN for text in texts)
    return sum(length for length in lengths if length <= most)
