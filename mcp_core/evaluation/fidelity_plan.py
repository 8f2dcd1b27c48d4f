"""Plan: what a Recipe is compared with, on which path, under which key, and what has to be said beside the figures.

This file does not know how a model is loaded or scored (``fidelity.py``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mcp_core import conflicts, llama_cpp, texts
from mcp_core.documents import TextSet, require_disjoint
from mcp_core.errors import InputError
from mcp_core.evaluation.fidelity_text import builtin_evaluation
from mcp_core.hardware import Hardware
from mcp_core.models import catalog
from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.footprint import resolve_max_context
from mcp_core.models.kv_memory import DEFAULT_WINDOW
from mcp_core.recipe import DType, KVCache, ModelRef, Recipe
from mcp_core.results import Fidelity

__all__ = ["Plan", "make_plan", "original_named", "plan_of", "require_unseen", "screening"]

# Raised when figures of the same Recipe and text would come out otherwise: what was stored is measured again.
_METHOD = 1
# CONTRACTS.md: KV kinds are decoded after this many tokens.
_PREFILL_TOKENS = 128
# KV kinds that keep or recompute keys and values as they are.
_LOSSLESS_KV = {
    "offloaded": "offloaded keeps every key and value as it was computed, on the host",
    "off": "off computes every key and value again from the same tokens",
}
LOSSLESS_TEST = "tests/evaluation/test_fidelity_scoring.py::test_lossless_kv_kinds_predict_as_dynamic_does"
_SCREENING_DOCUMENTS = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """One question about fidelity, settled as far as it can be without loading anything.

    ``candidate`` and ``reference`` have model, device and threads resolved; ``candidate.kv.kind`` is the one that
    is scored: dynamic for a kind that loses nothing. ``recipe`` is what was asked. On the path "endpoint" it is
    judged through the server that serves it: that of an engine whose logits only it knows. ``original`` is the
    model that a checkpoint was made of, where it is compared with that; None: with its own weights.
    """

    recipe: Recipe
    candidate: Recipe
    reference: Recipe
    resolved: ResolvedModel
    text: TextSet
    path: Literal["prefill", "decode", "endpoint"]
    original: ResolvedModel | None = None

    @property
    def reference_model(self) -> ResolvedModel:
        """What ``reference`` loads."""
        return self.original or self.resolved

    @property
    def reference_title(self) -> str:
        """What the Recipe is compared with, in words."""
        model = self.reference_model
        gguf = ", dequantized from GGUF" if model.gguf_file is not None else ""
        return f"{model.title}{gguf}, {self.reference.dtype}, unquantized, {self.reference.attention}"

    @property
    def key(self) -> str | None:
        """Digest of model, numerics_key, reference and text; None while the model's content is not here."""
        return self._digest(self.recipe.numerics_key, self.resolved)

    @property
    def floor_key(self) -> str | None:
        """The same of the reference alone: its noise floor is the same for every candidate."""
        return self._digest("noise floor", self.reference_model)

    @property
    def prefill_tokens(self) -> int:
        """On the decode path, tokens before the first that is decoded: a window must be full to be judged."""
        if self.candidate.kv.kind == "sliding":
            return max(_PREFILL_TOKENS, self.candidate.kv.window or DEFAULT_WINDOW)
        return _PREFILL_TOKENS

    def without_measuring(self) -> Fidelity | None:
        """The answer where nothing can be measured, or a test has shown that the Recipe loses nothing."""
        if self.resolved.random_weights:
            why = f"{self.resolved.title}: what random weights say means nothing, and neither does its change."
            return self._told("not-measurable", why)
        if self.resolved.quantized is not None and self.original is None:
            how = self.resolved.quantized.label
            why = (
                f"{self.resolved.title} comes quantized ({how}): it does not hold the weights to compare it with. "
                "Name the checkpoint that it was made of as the original."
            )
            return self._told("not-measurable", why)
        why = _LOSSLESS_KV.get(self.recipe.kv.kind, "")
        if self.original is None and why and self.candidate.numerics_key == self.reference.numerics_key:
            return self._told("lossless-by-test", f"{why}; {LOSSLESS_TEST} holds it to that.")
        return None

    def notes(self, documents: int) -> tuple[str, ...]:
        """What must stand beside the figures."""
        return tuple(self._notes(documents))

    def _notes(self, documents: int) -> Iterator[str]:
        recipe = self.recipe
        yield from screening(documents)
        if self.original is not None:
            yield f"compared with {self.original.title}, named as the model that {self.resolved.title} was made of"
        if "bundled" in (recipe.model.source, self.reference.model.source):
            yield (
                "SmolLM2-135M proves the instrument and not the scheme: "
                "so small a model suffers more from few bits than a large one"
            )
            if recipe.quantization.scheme == "torchao-int4-weight-only" and recipe.quantization.group_size == 32:
                yield (
                    "artefact: the bundled model's weights already lie on a 4-bit grid of group 32 (Q4_1), "
                    "so int4 of group 32 looks almost lossless here and is not elsewhere"
                )
        if recipe.kv.kind in _LOSSLESS_KV:
            yield f"{_LOSSLESS_KV[recipe.kv.kind]}: scored with kv.kind dynamic"
        if self.path == "endpoint":
            yield from self._notes_on_engine()
        elif recipe.compile != "off":
            yield "scored without the compiled decode step"
        if recipe.batching.mode == "continuous" and self.path != "endpoint":
            yield "scored with the keys and values of one sequence, not with the pages of continuous batching"
        if self.reference.dtype != self.reference_model.architecture.native_dtype:
            yield f"the reference is in {self.reference.dtype}, to check the instrument; native is " + (
                self.reference_model.architecture.native_dtype
            )

    def _notes_on_engine(self) -> Iterator[str]:
        if self.recipe.engine == "llama.cpp":
            yield f"scored a token a step, as llama.cpp decodes, with its keys and values in {llama_cpp.KV_TYPE}"
        if self.recipe.engine == "llama.cpp" and self.original is None:
            yield (
                f"the reference has the same {self.resolved.gguf_type} weights, dequantized: "
                "what the file lost against the model that it was made of is not in these figures"
            )
        if self.recipe.engine != "llama.cpp":
            yield f"scored by {self.recipe.engine}'s server, in prefill passes of its own"

    def _told(self, status: Literal["not-measurable", "lossless-by-test"], reason: str) -> Fidelity:
        return Fidelity(
            status=status,
            reason=reason,
            key=self.key,
            numerics_key=self.recipe.numerics_key,
            reference=self.reference_title,
            path=self.path,
            engine=self.recipe.engine,
            text_sha256=self.text.sha256,
            text_name=self.text.name,
        )

    def _digest(self, what: str, model: ResolvedModel) -> str | None:
        """``model`` is the one whose content it is of; the original's own is added where that is another."""
        shas = tuple(dict.fromkeys((model.ref.sha256, self.reference_model.ref.sha256)))
        if None in shas and not model.random_weights:
            return None
        parts = {
            "method": _METHOD,
            "model": shas[0],
            "what": what,
            "reference": self.reference.numerics_key,
            "text": self.text.sha256,
            "context": resolve_max_context(self.candidate, self.resolved.architecture),
            "path": [self.path, self.prefill_tokens] if self.path == "decode" else [self.path],
        } | ({"original": shas[1]} if len(shas) > 1 else {})
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def screening(documents: int) -> tuple[str, ...]:
    """What must be said where so few documents were scored that the figures decide nothing; nothing from 20 on."""
    if documents >= _SCREENING_DOCUMENTS:
        return ()
    return (f"screening only: {documents} document{'' if documents == 1 else 's'}",)


def make_plan(
    recipe: Recipe,
    machine: Hardware,
    *,
    text_sha256: str | None = None,
    reference_dtype: DType | None = None,
    original: ModelRef | None = None,
    hub_token: str | None = None,
) -> Plan:
    """Settle what is compared with what; ``text_sha256`` None is the built-in set.

    Raises RecipeError for what cannot run here, InputError for a text that is not kept or that the scheme was
    calibrated on, and for an ``original`` that cannot be one, and what ``catalog.resolve`` raises.
    """
    conflicts.require_runnable(recipe, machine)
    resolved = catalog.resolve(recipe.model, hub_token=hub_token)
    plan = plan_of(recipe, machine, resolved, text_sha256=text_sha256, reference_dtype=reference_dtype)
    if original is None:
        return plan
    return _compared_with(catalog.resolve(original, hub_token=hub_token), plan, reference_dtype)


def plan_of(
    recipe: Recipe,
    machine: Hardware,
    resolved: ResolvedModel,
    *,
    text_sha256: str | None = None,
    reference_dtype: DType | None = None,
) -> Plan:
    """The same for a Recipe that can run here, and whose model was looked up."""
    recipe = conflicts.resolve(recipe, machine)
    recipe = recipe.model_copy(update={"model": resolved.ref})
    text = texts.get(text_sha256) if text_sha256 else builtin_evaluation()
    require_unseen(recipe, text)
    candidate = _scored(recipe)
    return Plan(
        recipe=recipe,
        candidate=candidate,
        reference=_reference(recipe, reference_dtype or resolved.architecture.native_dtype),
        resolved=resolved,
        text=text,
        path=_path(candidate),
    )


def original_named(text: str) -> ModelRef:
    """The model that a user names as an original: "bundled", a folder, a .gguf file or a Hub id."""
    path = Path(text).expanduser()
    if text == "bundled":
        return ModelRef()
    if path.suffix == ".gguf":
        return ModelRef(source="gguf", id=str(path))
    return ModelRef(source="folder" if path.is_dir() else "hub", id=str(path) if path.is_dir() else text)


def _compared_with(original: ResolvedModel, plan: Plan, dtype: DType | None) -> Plan:
    title, of = original.title, plan.resolved.title
    if original.random_weights or original.quantized is not None:
        came = "has random weights" if original.random_weights else "comes quantized itself"
        raise InputError(f"{title} cannot be the original of {of}: it {came}.", "Name the dense checkpoint.")
    has, needs = original.architecture.vocab, plan.resolved.architecture.vocab
    if has != needs:
        raise InputError(
            f"{title} cannot be the original of {of}: it has {has:,} tokens, the other {needs:,}.",
            "Name the checkpoint that it was made of.",
        )
    recipe = plan.recipe.model_copy(update={"model": original.ref})
    reference = _reference(recipe, dtype or original.architecture.native_dtype)
    return replace(plan, original=original, reference=reference)


def require_unseen(recipe: Recipe, text: TextSet) -> None:
    """Raise InputError when the scheme was calibrated on a passage of ``text``, or on a text not kept here."""
    if "calibration" in conflicts.options_read_by(recipe.quantization.scheme):
        require_disjoint(texts.get(recipe.quantization.calibration.text), text)


def _scored(recipe: Recipe) -> Recipe:
    if recipe.kv.kind not in _LOSSLESS_KV:
        return recipe
    return recipe.model_copy(update={"kv": KVCache(max_context=recipe.kv.max_context)})


def _path(candidate: Recipe) -> Literal["prefill", "decode", "endpoint"]:
    if candidate.engine != "transformers":
        return "endpoint"
    return "prefill" if candidate.kv.kind == "dynamic" else "decode"


def _reference(recipe: Recipe, dtype: DType) -> Recipe:
    """The unquantized model with the same attention on transformers, every other option at its default: one
    reference for all engines, so that their figures can be compared."""
    # Flash kernels do not compute in fp32, which is only asked for to check the instrument.
    attention = "sdpa" if dtype == "fp32" and recipe.attention.startswith("flash") else recipe.attention
    return Recipe(
        model=recipe.model,
        device=recipe.device,
        threads=recipe.threads,
        dtype=dtype,
        attention=attention,
        kv=KVCache(max_context=recipe.kv.max_context),
    )
