"""Advisor: the article's best practices as a checklist of one Recipe on one machine: done, worth trying, or not.

One row a practice; what a machine cannot do is asked of ``conflicts.py``, what a change was worth of stored Runs
and experiments. This file does not know how it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mcp_core import conflicts
from mcp_core.decision.counterparts import counterpart, is_of_device, key_of
from mcp_core.decision.recipe_changes import changed_fields, with_companions
from mcp_core.evaluation.experiment_values import ExperimentResult
from mcp_core.evaluation.experiments import verdict
from mcp_core.hardware import Hardware
from mcp_core.models.architecture import DTYPE_BYTES
from mcp_core.recipe import Recipe
from mcp_core.results import Run
from mcp_core.schemes import SCHEMES

__all__ = ["GROUPS", "Item", "advise"]

Group = Literal["Memory", "Speed", "GPU utilization", "Distribution", "Caching"]
Status = Literal["done", "worth trying", "not applicable"]
GROUPS: tuple[Group, ...] = ("Memory", "Speed", "GPU utilization", "Distribution", "Caching")

# A requests put back for every ten: pages are short.
_PUT_BACK = 0.1


@dataclass(frozen=True, slots=True)
class Item:
    """One practice. ``change`` is the Recipe that follows it, where it is worth trying.

    ``expected`` is predicted; ``measured`` says what it was worth on this machine, and ``run_id`` by which Run.
    """

    group: Group
    title: str
    status: Status
    reason: str
    expected: str = ""
    measured: str = ""
    run_id: str | None = None
    change: Recipe | None = None
    fields: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A Recipe on a machine, and what was measured there."""

    recipe: Recipe
    machine: Hardware
    runs: Sequence[Run]
    experiments: Mapping[str, ExperimentResult]

    @property
    def run(self) -> Run | None:
        """The newest good Run of this very Recipe."""
        good = (each for each in self.runs if each.status == "ok" and each.measurement is not None)
        return next((each for each in good if _same(self.recipe, each, self.machine)), None)


def advise(
    recipe: Recipe,
    machine: Hardware,
    runs: Iterable[Run] = (),
    experiments: Mapping[str, ExperimentResult] | None = None,
) -> tuple[Item, ...]:
    """Every practice of the article, in its order. ``runs`` are newest first."""
    asked = _Asked(recipe, machine, tuple(runs), experiments or {})
    return tuple(row(asked) for row in _ROWS)


# Memory


def _quantization(asked: _Asked) -> Item:
    scheme = asked.recipe.quantization.scheme
    if scheme != "none":
        kept = SCHEMES[scheme]
        return _done(asked, "Memory", "Quantization", f"{kept.title}: {kept.about}", {"quantization": {}})
    names = ("torchao-int8-weight-only", "bnb-int8", "bnb-nf4")
    options = [asked.recipe.replace({"quantization.scheme": name}) for name in names]
    dense = 8 * DTYPE_BYTES[asked.recipe.dtype]
    expected = f"Linear layers of 8 bits a weight, not {dense}. Whether it is faster depends on kernel and batch."
    return _open(asked, "Memory", "Quantization", f"The weights are in {asked.recipe.dtype}.", options, expected)


def _checkpointing(asked: _Asked) -> Item:
    reason = "It throws activations away that only a backward pass needs; inference has none."
    return _never(asked, "Memory", "Gradient checkpointing", reason, "gradient-checkpointing")


def _attention(asked: _Asked) -> Item:
    title, name = "Efficient attention", "efficient-attention"
    if asked.recipe.engine not in ("transformers", "llama.cpp"):
        return _never(asked, "Memory", title, f"{asked.recipe.engine} has attention of its own.", name)
    if asked.recipe.attention != "eager":
        without = {"attention": "eager"}
        return _done(asked, "Memory", title, f"{asked.recipe.attention} never writes all scores.", without, name)
    options = [asked.recipe.replace({"attention": "sdpa"})]
    expected = "Scores of all pairs of tokens are no longer written: more, the longer the prompt."
    if asked.recipe.engine == "llama.cpp":
        expected += " Its tokens over a past of 1,500 took half as long again with it (docs/cpu.md)."
    return _open(asked, "Memory", title, "eager writes the scores of all pairs of tokens.", options, expected, name)


# Speed


def _batching(asked: _Asked) -> Item:
    mode, title = asked.recipe.batching.mode, "Batching"
    if mode == "continuous":
        reason = "Requests join and leave at every step."
        return _done(asked, "Speed", title, reason, {"batching.mode": "off"})
    words = {"off": "One request at a time.", "static": "A batch waits for its longest reply."}
    options = list(with_companions(asked.recipe, {"batching.mode": "continuous"}))
    expected = "More tokens/s as soon as several requests come at once; nothing for one user."
    return _open(asked, "Speed", title, words[mode], options, expected)


def _kv_cache(asked: _Asked) -> Item:
    kind, title, name = asked.recipe.kv.kind, "KV cache", "kv-cache-off"
    if kind != "off":
        return _done(asked, "Speed", title, f"Past tokens are kept ({kind}).", {"kv.kind": "off"}, name)
    options = [asked.recipe.replace({"kv.kind": "dynamic"})]
    expected = "A token costs a token instead of the whole sequence."
    return _open(asked, "Speed", title, "Every token computes the whole sequence again.", options, expected, name)


def _precision(asked: _Asked) -> Item:
    title, recipe = "Mixed precision", asked.recipe
    if recipe.engine == "llama.cpp":
        return _never(asked, "Speed", title, "llama.cpp computes in the types that the GGUF's weights have.")
    if recipe.dtype != "fp32":
        return _done(asked, "Speed", title, f"Weights and products in {recipe.dtype}.", {"dtype": "fp32"})
    if recipe.switches.autocast is not None:
        reason = f"Products in {recipe.switches.autocast}, weights in fp32."
        return _done(asked, "Speed", title, reason, {"switches.autocast": None})
    ratio = _rate_of_bf16(asked)
    if ratio is not None and ratio <= 1:
        reason = f"Products in bf16 run at {ratio:.2f} times the rate of fp32 on this device, as it was measured."
        return _never(asked, "Speed", title, reason)
    rate = f"Products at up to {ratio:.1f} times the rate, measured here; half" if ratio else "Half"
    options = [recipe.replace({"dtype": "bf16"})]
    return _open(asked, "Speed", title, "Everything is in fp32.", options, f"{rate} the bytes of the weights.")


def _rate_of_bf16(asked: _Asked) -> float | None:
    resolved = conflicts.resolve(asked.recipe, asked.machine)
    found = asked.machine.ceilings_of(resolved.device, resolved.threads)
    rates = found.matmul_flop_s if found else {}
    return rates["bf16"] / rates["fp32"] if {"bf16", "fp32"} <= set(rates) else None


# GPU utilization


def _several_gpus(asked: _Asked) -> Item:
    count = len(asked.machine.cuda_devices)
    reason = "This machine has no NVIDIA device." if not count else "This machine has one NVIDIA device."
    if count > 1:
        reason = "This version serves a model on one device; load a worker on each of them."
    return _never(asked, "GPU utilization", "Several GPUs", reason)


def _tf32(asked: _Asked) -> Item:
    title, field = "TF32", "switches.tf32"
    if asked.recipe.switches.tf32:
        return _done(asked, "GPU utilization", title, "fp32 products run on tensor cores.", {field: False}, "tf32")
    options = [asked.recipe.replace({field: True})]
    expected = "fp32 products with 10 bits of mantissa, several times the rate."
    return _open(asked, "GPU utilization", title, "fp32 products keep all their bits.", options, expected, "tf32")


def _autocast(asked: _Asked) -> Item:
    title, field = "Automatic mixed precision (autocast)", "switches.autocast"
    if asked.recipe.switches.autocast is not None:
        return _done(
            asked, "GPU utilization", title, "Weights are converted at each use.", {field: None}, "autocast"
        )
    options = [asked.recipe.replace({field: "bf16"})]
    expected = "Products in bf16; fp32 weights are converted at each use, so bf16 weights are better still."
    return _open(asked, "GPU utilization", title, "Off.", options, expected, "autocast")


# Distribution


def _balancing(asked: _Asked) -> Item:
    reason = "This version runs one worker a Recipe: nothing to balance."
    return _never(asked, "Distribution", "Load balancing", reason)


def _parallel(asked: _Asked) -> Item:
    reason = "This version splits no model over devices; choose a smaller or a quantized one where it does not fit."
    return _never(asked, "Distribution", "Model parallel", reason)


def _communication(asked: _Asked) -> Item:
    return _never(asked, "Distribution", "Communication", "One device talks to no other.")


# Caching


def _levels(asked: _Asked) -> Item:
    title = "Levels"
    if asked.recipe.prefix_cache:
        reason = "Shared beginnings of prompts are kept on the device. This version caches no whole replies."
        return _done(asked, "Caching", title, reason, {"prefix_cache": False})
    options = list(with_companions(asked.recipe, {"prefix_cache": True}))
    options += list(with_companions(asked.recipe, {"prefix_cache": True, "batching.mode": "continuous"}))
    expected = "Prompts that begin alike (system prompts, chats) skip what they share: a shorter TTFT."
    return _open(asked, "Caching", title, "Every prompt is computed from its first token.", options, expected)


def _sizes(asked: _Asked) -> Item:
    title, recipe, run = "Sizes", asked.recipe, asked.run
    if not recipe.is_paged:
        return _never(asked, "Caching", title, "Keys and values are not kept in a pool of pages here.")
    work, measured = (run.engine_work, run.measurement) if run else (None, None)
    if run is None or work is None or measured is None or not measured.completed:
        reason = "No Run of this Recipe says how full its pool gets."
        return Item("Caching", title, "not applicable", reason, expected="Measure it, then look again.")
    if work.preemptions < _PUT_BACK * measured.completed:
        reason = f"The pool of {work.kv_capacity_tokens:,} tokens was enough: {work.preemptions} requests put back."
        return Item("Caching", title, "done", reason, run_id=run.id)
    pages = 2 * (recipe.batching.kv_blocks or max(4, work.kv_capacity_tokens // 16))
    reason = f"{work.preemptions} of {measured.completed} requests were put back for lack of pages."
    options = [recipe.replace({"batching.kv_blocks": pages})]
    return _open(asked, "Caching", title, reason, options, "Requests keep their pages and are computed once.")


def _hit_rates(asked: _Asked) -> Item:
    title, run = "Hit rates", asked.run
    if not asked.recipe.prefix_cache:
        return _never(asked, "Caching", title, "There is no cache that could be hit: see Levels.")
    work = run.engine_work if run else None
    if run is None or work is None:
        return Item("Caching", title, "not applicable", "No Run of this Recipe says what its prompts share.")
    asked_for = work.cached_prompt_tokens + work.prompt_tokens
    rate = work.cached_prompt_tokens / asked_for if asked_for else 0.0
    reason = f"{rate:.0%} of {asked_for:,} prompt tokens came from it, {work.kv_evictions:,} pages were given up."
    return Item("Caching", title, "done", reason, run_id=run.id)


_ROWS: tuple[Callable[[_Asked], Item], ...] = (
    _quantization,
    _checkpointing,
    _attention,
    _batching,
    _kv_cache,
    _precision,
    _several_gpus,
    _tf32,
    _autocast,
    _balancing,
    _parallel,
    _communication,
    _levels,
    _sizes,
    _hit_rates,
)


# The three answers


def _done(
    asked: _Asked, group: Group, title: str, reason: str, without: Mapping[str, Any], experiment: str = ""
) -> Item:
    """What it is worth is told by a Run without it, else by the experiment."""
    other = asked.recipe.replace(without)
    measured, run_id = _effect(asked, other, gained=True)
    return Item(group, title, "done", reason, "", measured or _tried(asked, experiment), run_id)


def _open(
    asked: _Asked,
    group: Group,
    title: str,
    reason: str,
    options: Sequence[Recipe],
    expected: str,
    experiment: str = "",
) -> Item:
    """Worth trying as the first option that this machine can honour; not applicable with the last one's reason."""
    for option in options:
        if not _new_conflicts(asked, option):
            measured, run_id = _effect(asked, option, gained=False)
            fields = changed_fields(asked.recipe, option)
            worth = measured or _tried(asked, experiment)
            return Item(group, title, "worth trying", reason, expected, worth, run_id, option, fields)
    why = next(iter(_new_conflicts(asked, options[0])))
    return Item(group, title, "not applicable", f"{why[:1].upper()}{why[1:]}", measured=_tried(asked, experiment))


def _never(asked: _Asked, group: Group, title: str, reason: str, experiment: str = "") -> Item:
    return Item(group, title, "not applicable", reason, measured=_tried(asked, experiment))


def _new_conflicts(asked: _Asked, option: Recipe) -> tuple[str, ...]:
    """Reasons against the option that do not stand against the Recipe already."""
    known = set(asked.recipe.conflicts(asked.machine))
    return tuple(each.reason for each in option.conflicts(asked.machine) if each not in known)


# What was measured


def _effect(asked: _Asked, other: Recipe, *, gained: bool) -> tuple[str, str | None]:
    """Throughput and memory of two Runs that differ in this only; ``gained``: the Recipe follows the practice."""
    for run in asked.runs:
        if run.status != "ok" or run.measurement is None or not _same(asked.recipe, run, asked.machine):
            continue
        known = counterpart(run, other, asked.runs)
        if known is not None:
            before, after = (known, run) if gained else (run, known)
            return _ratio(before, after), known.id
    return "", None


def _ratio(before: Run, after: Run) -> str:
    words = []
    for what, old, new in (
        ("output tokens/s", _speed(before), _speed(after)),
        ("peak memory", _peak(before), _peak(after)),
    ):
        if old and new:
            words.append(f"{new / old:.2f} times the {what}")
    return f"{' and '.join(words)} (two Runs of {after.workload.name})." if words else ""


def _speed(run: Run) -> float | None:
    return run.measurement.output_tok_s if run.measurement else None


def _peak(run: Run) -> float | None:
    return run.memory.peak_bytes if run.memory else None


def _tried(asked: _Asked, experiment: str) -> str:
    """What the Handbook's own trial found on this machine."""
    result = asked.experiments.get(experiment)
    return f"{verdict(result)} Tried on {result.model}." if result else ""


def _same(recipe: Recipe, run: Run, machine: Hardware) -> bool:
    """Whether a Run is of this Recipe on this machine."""
    alike = key_of(recipe, machine) == key_of(run.recipe, run.hardware)
    return alike and is_of_device(run, machine, recipe.device)
