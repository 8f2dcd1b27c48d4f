"""Roofline: bytes and FLOPs of prefill and decode from sizes alone, and where measured times stand below ceilings.

Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009: a step takes at least bytes / bandwidth and at least
FLOPs / FLOP rate. Weights are counted by ``models/packing.py``, keys and values by ``models/kv_memory.py``; tensors
that only pass (activations) are left out, so a floor is a floor. This file does not know how times are measured or
what to do about them (``verdicts.py``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mcp_core.ceilings import Ceilings, Product
from mcp_core.generation import PREFILL_CHUNK_TOKENS
from mcp_core.models.architecture import Architecture
from mcp_core.models.footprint import Predictor
from mcp_core.models.kv_memory import kept_tokens
from mcp_core.models.packing import ModuleSize
from mcp_core.models.served_load import ServedLoad
from mcp_core.recipe import Recipe, SchemeName
from mcp_core.results import Run

__all__ = ["Point", "Roofline", "Work", "decode_work", "prefill_work", "product_of", "roofline_of", "sequences_of"]

# Tables of which a step takes a row a token, nothing more; a tied one is the output layer as well.
_LOOKED_UP = re.compile(r"(^|\.)(embed\w*|word_embeddings\w*|wte|wpe)$")
_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions)$")
_EXPERT = re.compile(r"\.experts(\.|$)")
_EXPERT_NUMBER = re.compile(r"\.experts\.(\d+)\.")
# Schemes whose products are of int8 with int8; all others compute in the Recipe's dtype.
_INT8_PRODUCTS: frozenset[SchemeName] = frozenset(
    {
        "bnb-int8",
        "torchao-int8-dynamic",
        "torchao-int8-static",
        "torchao-int8-static-smoothquant",
        "classic-dynamic",
        "gguf",
    }
)


@dataclass(frozen=True, slots=True)
class Work:
    """What one step, or one prompt, has to move and to compute."""

    flops: float
    weights_bytes: float
    kv_bytes: float

    @property
    def bytes(self) -> float:
        """Read from memory, keys and values included."""
        return self.weights_bytes + self.kv_bytes

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass(frozen=True, slots=True)
class Point:
    """One phase of a Run below its device's ceilings; what needs a ceiling is None without one.

    ``ms`` is the measured time of ``work``.
    """

    work: Work
    ms: float | None
    bandwidth_bytes_s: float | None = None
    flop_s: float | None = None

    @property
    def reading_ms(self) -> float | None:
        """Least time to move the bytes."""
        return self.work.bytes / self.bandwidth_bytes_s * 1e3 if self.bandwidth_bytes_s else None

    @property
    def computing_ms(self) -> float | None:
        """Least time to compute the FLOPs."""
        return self.work.flops / self.flop_s * 1e3 if self.flop_s else None

    @property
    def floor_ms(self) -> float | None:
        """The larger of both; None unless the bandwidth is known."""
        return None if self.reading_ms is None else max(self.reading_ms, self.computing_ms or 0.0)

    @property
    def achieved_flop_s(self) -> float | None:
        """FLOPs over the measured time."""
        return self.work.flops / self.ms * 1e3 if self.ms else None

    @property
    def mbu(self) -> float | None:
        """(weights read + keys and values) / time / bandwidth (Databricks, "LLM inference performance")."""
        return self.reading_ms / self.ms if self.reading_ms is not None and self.ms else None

    @property
    def mfu(self) -> float | None:
        """(2 x parameters x tokens + attention) / time / FLOP rate (PaLM, arXiv 2204.02311, appendix B)."""
        return self.computing_ms / self.ms if self.computing_ms is not None and self.ms else None

    @property
    def share_of_floor(self) -> float | None:
        """Least time over measured time: 1 is as fast as the device can be."""
        return self.floor_ms / self.ms if self.floor_ms is not None and self.ms else None

    @property
    def below_ridge(self) -> bool | None:
        """Whether moving bytes takes longer than computing at best; None where a ceiling is missing."""
        if self.reading_ms is None or self.computing_ms is None:
            return None
        return self.reading_ms > self.computing_ms


@dataclass(frozen=True, slots=True)
class Roofline:
    """Prefill of one prompt and one decode step of a Run. ``sequences`` share a decode step, mean.

    ``product`` is what the FLOP ceiling is of; ``prompt_tokens`` and ``context_tokens`` are means.
    """

    prefill: Point
    decode: Point
    product: Product | None
    sequences: float
    prompt_tokens: float
    context_tokens: float
    ceilings: Ceilings | None = None

    @property
    def is_placed(self) -> bool:
        """Whether a phase has both a measured time and a ceiling above it."""
        return any(each.ms and each.bandwidth_bytes_s for each in (self.prefill, self.decode))


def decode_work(predictor: Predictor, context_tokens: float, sequences: float = 1.0) -> Work:
    """One decode step of ``sequences`` that hold ``context_tokens`` each.

    Every weight is read once a step, of looked-up tables nothing, of a mixture's experts those that are chosen
    (activated bandwidth, arXiv 2412.07067). FLOPs: 2 a weight and token (Kaplan et al., arXiv 2001.08361), and
    4 x head_dim x heads x context a layer for scores and values.
    """
    flops = sequences * (_linear_flops(predictor) + _output_flops(predictor))
    flops += sequences * _attention_flops(predictor, context_tokens)
    kv = sequences * _kv_bytes(predictor, context_tokens)
    return Work(flops, _weights_bytes(predictor, sequences), kv)


def prefill_work(predictor: Predictor, prompt_tokens: float, computed: float | None = None) -> Work:
    """One prompt, of which the last ``computed`` tokens are not in a cache (None: none is).

    It goes through in chunks: the weights are read once a chunk, and the keys and values of all that came before.
    A token attends to itself and what came before it; the output layer sees the last token only.
    """
    computed = prompt_tokens if computed is None else computed
    chunk = min(computed, _chunk_tokens(predictor)) or 1.0
    chunks, cached = computed / chunk, prompt_tokens - computed
    mean_context = cached + computed / 2
    flops = computed * (_linear_flops(predictor) + _attention_flops(predictor, mean_context))
    flops += _output_flops(predictor)
    kv = max(1.0, chunks) * _kv_bytes(predictor, mean_context) + _kv_bytes(predictor, computed)
    return Work(flops, max(1.0, chunks) * _weights_bytes(predictor, chunk), kv)


def product_of(recipe: Recipe) -> Product | None:
    """The kind of product that does most of this Recipe's work; None where no ceiling is measured for it."""
    if recipe.quantization.scheme in _INT8_PRODUCTS:
        return "int8"
    if recipe.quantization.scheme == "torchao-fp8-dynamic":
        return None
    if recipe.switches.tf32:
        return "tf32"
    return recipe.switches.autocast or recipe.dtype


def roofline_of(run: Run, predictor: Predictor, ceilings: Ceilings | None) -> Roofline | None:
    """Where a measured Run stands; None for one without a Measurement. ``predictor`` is of the Run's Recipe."""
    measured = run.measurement
    if measured is None or not measured.completed:
        return None
    prompt, output = measured.prompt_tokens / measured.completed, measured.output_tokens / measured.completed
    cached = (run.engine_work.cached_prompt_tokens / measured.completed) if run.engine_work else 0.0
    sequences, context = sequences_of(run), prompt + output / 2
    product = product_of(run.recipe)
    bandwidth = ceilings.bandwidth_bytes_s if ceilings else None
    flop_s = ceilings.matmul_flop_s.get(product) if ceilings and product else None
    prefill = prefill_work(predictor, prompt, max(1.0, prompt - cached))
    return Roofline(
        prefill=Point(prefill, _prefill_ms(run), bandwidth, flop_s),
        decode=Point(decode_work(predictor, context, sequences), _step_ms(run), bandwidth, flop_s),
        product=product,
        sequences=sequences,
        prompt_tokens=prompt,
        context_tokens=context,
        ceilings=ceilings,
    )


def sequences_of(run: Run) -> float:
    """How many sequences shared a decode step, mean; at least 1.

    By Little's law: the requests' decode times together, over the time in which the engine decoded. In mode
    continuous steps with prompts decode as well.
    """
    measured, work, mode = run.measurement, run.engine_work, run.recipe.batching.mode
    if mode == "off":
        return 1.0
    at_most = float(run.workload.at_once(run.recipe.batching.max_requests))
    if measured is None or measured.decode_ms is None or measured.decode_ms.mean is None or work is None:
        return at_most
    decoding_s = work.decode_s + (work.prefill_s if mode == "continuous" else 0.0)
    together_s = measured.decode_ms.mean * measured.decode_ms.n / 1e3
    return min(at_most, max(1.0, together_s / decoding_s)) if decoding_s > 0 else at_most


def _step_ms(run: Run) -> float | None:
    """Mean of the engine's own decode steps, else the time of an output token by the best clock there is."""
    work, measured = run.engine_work, run.measurement
    if work is not None and work.decode_steps:
        return work.decode_s / work.decode_steps * 1e3
    return None if measured is None else measured.engine_tpot_ms or measured.tpot_ms.p50


def _prefill_ms(run: Run) -> float | None:
    """Of one prompt: the engine's own time, else a request's first token less its wait."""
    work, measured = run.engine_work, run.measurement
    if measured is None:
        return None
    if work is not None and work.prefill_s > 0 and run.recipe.batching.mode != "continuous":
        return work.prefill_s / measured.completed * 1e3
    return measured.prefill_ms.p50 if measured.prefill_ms else measured.ttft_ms.p50


def _weights_bytes(predictor: Predictor, tokens: float) -> float:
    """Read by one pass of ``tokens`` tokens."""
    experts = _experts_read(predictor.architecture, tokens)
    return sum(size.bytes * (experts if _EXPERT.search(size.name) else 1.0) for size in _read(predictor))


def _linear_flops(predictor: Predictor) -> float:
    """Of one token in all layers: 2 a weight, of experts those that work on a token."""
    architecture = predictor.architecture
    share = _experts_read(architecture, 1.0)
    matrices = (size for size in _read(predictor) if size.part != "other" and not _is_output(size, architecture))
    return 2 * sum(size.parameters * (share if _EXPERT.search(size.name) else 1.0) for size in matrices)


def _output_flops(predictor: Predictor) -> float:
    return 2.0 * predictor.architecture.vocab * predictor.architecture.hidden


def _attention_flops(predictor: Predictor, context_tokens: float) -> float:
    """Scores and values of one token over what every layer keeps: 2 x 2 x head_dim x heads for each."""
    architecture = predictor.architecture
    kept = architecture.kv_elements(_kept(predictor, context_tokens))
    return 2.0 * kept * architecture.heads / architecture.kv_heads


def _kv_bytes(predictor: Predictor, context_tokens: float) -> float:
    """Keys and values of one sequence as they are stored."""
    architecture = predictor.architecture
    per_element = predictor.at(ServedLoad(1)).kv_bytes_per_token / architecture.kv_elements_per_token
    return per_element * architecture.kv_elements(_kept(predictor, context_tokens))


def _kept(predictor: Predictor, context_tokens: float) -> int:
    load = ServedLoad(max(1, round(context_tokens)), allocated_tokens=predictor.max_context)
    return kept_tokens(predictor.recipe, load)


def _chunk_tokens(predictor: Predictor) -> int:
    recipe = predictor.recipe
    budget = PREFILL_CHUNK_TOKENS[predictor.device.kind]
    return min(budget, recipe.batching.step_tokens) if recipe.batching.mode == "continuous" else budget


def _read(predictor: Predictor) -> list[ModuleSize]:
    """Modules whose weights a step reads as a whole."""
    tied = predictor.architecture.tied
    return [
        size
        for size in predictor.modules
        if not _LOOKED_UP.search(size.name) or (tied and not _POSITIONS.search(size.name))
    ]


def _is_output(size: ModuleSize, architecture: Architecture) -> bool:
    return size.name.endswith("lm_head") or (architecture.tied and _LOOKED_UP.search(size.name) is not None)


def _experts_read(architecture: Architecture, tokens: float) -> float:
    """Share of a mixture's experts that at least one of ``tokens`` chooses, were every choice as likely."""
    total = _experts_of(architecture)
    if not total or not architecture.active_experts:
        return 1.0
    untouched: float = (1.0 - architecture.active_experts / total) ** max(1.0, tokens)
    return 1.0 - untouched


def _experts_of(architecture: Architecture) -> int:
    """Experts of a layer, fused into one tensor or apart."""
    fused = (each.shape[0] for each in architecture.tensors if _EXPERT.search(each.name) and len(each.shape) == 3)
    apart = (int(found[1]) + 1 for each in architecture.tensors if (found := _EXPERT_NUMBER.search(each.name)))
    return max((*fused, *apart), default=0)
