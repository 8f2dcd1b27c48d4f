"""Sweep presets: the article's table, and the bundled model on this machine. Plans by name.

This file does not know how a plan is run, or what the article says (``evaluation/article_table.py``).
"""

from __future__ import annotations

from collections.abc import Callable

from mcp_core.errors import ModelNotFound
from mcp_core.goal import FidelityLimits, Goal
from mcp_core.hardware import Hardware
from mcp_core.recipe import ModelRef, Recipe, SchemeName, ShapeSpec
from mcp_core.sweep_plan import Axes, BatchingChoice, SweepPlan
from mcp_core.workload import Lengths, Workload

__all__ = ["PLANS", "article_plan", "sweep_preset"]

_EIGHT_AND_FOUR: tuple[SchemeName, ...] = (
    "none",
    "bnb-int8",
    "torchao-int8-weight-only",
    "bnb-nf4",
    "torchao-int4-weight-only",
)


def article(hardware: Hardware) -> SweepPlan:
    """The article's table: 7B and 13B unquantized, in 8 and 4 bits; without a GPU shapes of 0.1 and 0.2 B."""
    return article_plan(on_gpu=bool(hardware.cuda_devices) and hardware.torch_cuda is not None)


def article_plan(*, on_gpu: bool) -> SweepPlan:
    """The same for a machine with a GPU or without one, whatever this one has."""
    models = _SHAPES if on_gpu else _SMALL_SHAPES
    return SweepPlan(
        name="article",
        base=Recipe(
            model=models[0], device="cuda:0" if on_gpu else "cpu", kv={"max_context": 512}, batching=_CONTINUOUS
        ),
        axes=Axes(model=models, scheme=_EIGHT_AND_FOUR),
        workload=Workload(
            name="article",
            requests=200,
            concurrency=8,
            prompt_tokens=Lengths(min=128, max=128),
            output_tokens=Lengths(min=32, max=32),
        ),
        probe_s=0,
        keep=None,
        capacity_s=20,
        confirm=0,
    )


def bundled(hardware: Hardware) -> SweepPlan:
    """The bundled model: schemes × batching × engine, 8 users, ranked by throughput within a fidelity limit; about
    half an hour."""
    return SweepPlan(
        name="bundled",
        base=Recipe(dtype="bf16", device="cpu", threads=1, kv={"max_context": 512}),
        axes=Axes(
            engine=("transformers", "llama.cpp"),
            scheme=(
                "none",
                "torchao-int8-weight-only",
                "torchao-int8-dynamic",
                "torchao-int8-static",
                "torchao-int4-weight-only",
                "bnb-int8",
                "bnb-nf4",
                "bnb-fp4",
                "gguf",
            ),
            batching=tuple(BatchingChoice(mode=mode, max_requests=8) for mode in ("continuous", "static", "off")),
        ),
        workload=Workload(
            name="bundled-sweep",
            requests=200,
            concurrency=8,
            prompt_tokens=Lengths(min=32, max=96),
            output_tokens=Lengths(min=8, max=24),
            warmup_requests=2,
        ),
        goal=Goal(
            name="most tokens for 8 users",
            users=8,
            objective="throughput",
            fidelity=FidelityLimits(kl_over_floor_max=30),
        ),
        probe_s=15,
        keep=6,
        capacity_s=45,
        confirm=3,
        starts=3,
        confirm_s=30,
    )


_CONTINUOUS = {"mode": "continuous", "max_requests": 16}
_SHAPES = (ModelRef(source="shape", id="llama-2-7b"), ModelRef(source="shape", id="llama-2-13b"))
_SMALL_SHAPES = tuple(
    ModelRef(
        source="shape",
        id="custom",
        shape=ShapeSpec(
            layers=layers, hidden=hidden, intermediate=wide, heads=heads, kv_heads=heads, vocab=32000, context=4096
        ),
    )
    for layers, hidden, wide, heads in ((8, 768, 2048, 12), (12, 1024, 2816, 16))
)

PLANS: dict[str, Callable[[Hardware], SweepPlan]] = {"article": article, "bundled": bundled}


def sweep_preset(name: str, hardware: Hardware) -> SweepPlan:
    """The preset of that name for this machine. Raises ModelNotFound listing the names there are."""
    if name not in PLANS:
        raise ModelNotFound(f'There is no sweep preset "{name}".', f"There are: {', '.join(PLANS)}.")
    return PLANS[name](hardware)
