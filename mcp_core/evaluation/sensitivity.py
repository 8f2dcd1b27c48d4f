"""Sensitivity: one group of layers quantized at a time, and how far that alone moves the model's predictions.

The dense model is loaded once; a group is packed, judged against the dense model's predictions on the same tokens
and put back. Which layers to keep dense is decided elsewhere (``decision/mixed_recipe.py``).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from mcp_core import conflicts, hardware
from mcp_core.documents import Document, TextSet
from mcp_core.errors import InputError, RecipeError
from mcp_core.evaluation.fidelity_text import builtin_evaluation
from mcp_core.evaluation.sensitivity_values import (
    Grouping,
    GroupSensitivity,
    Sensitivity,
    require_separable,
)
from mcp_core.jobs import Job, Outcome
from mcp_core.memory import quantization
from mcp_core.memory.layer_swap import Packer, linear_layers, pack_layers, packed_for_a_while
from mcp_core.memory.quantization import Conversion
from mcp_core.models import catalog, loader
from mcp_core.models.architecture import LINEAR_EXPERTS
from mcp_core.models.load_errors import memory_watched
from mcp_core.models.loaded import LoadedModel
from mcp_core.recipe import Recipe
from mcp_core.schemes import SCHEMES

__all__ = ["TOGETHER", "Judge", "grouped", "measure", "packer_of", "passages", "run"]

# Tokens of one passage: most positions have context, and a CPU holds the logits of a few of them.
PASSAGE_TOKENS = 128
_PASSAGES_AT_ONCE = 2
TOGETHER = "all layers"

Groups = Mapping[str, tuple[str, ...]]


async def run(job: Job) -> Outcome:
    """Request: recipe, by, tokens. Secrets: hub_token. The result is a Sensitivity."""
    recipe = conflicts.resolve(Recipe.from_dict(job.request["recipe"]), hardware.detect())
    torch.set_num_threads(recipe.threads or 1)
    measured: list[GroupSensitivity] = []
    with memory_watched(f"quantizing {recipe.model.id} a group at a time"):
        study = _Study.prepare(recipe, job)
        groups = grouped(study.names, job.request["by"])
        for group in measure(study.judge, groups, study.pack):
            measured.append(group)
            share = len(measured) / (len(groups) + 1)
            job.tell("measure", share, f"{group.name}: KL {group.kl_mean:.2g} nats")
            await asyncio.sleep(0)  # where a cancellation arrives
    return Outcome("done", result=study.answer(job.request["by"], measured).model_dump(mode="json"))


@dataclass(frozen=True, slots=True, eq=False)
class _Study:
    """The dense model, its own predictions, and the scheme that is tried on it."""

    recipe: Recipe
    loaded: LoadedModel
    text: TextSet
    judge: Judge
    pack: Packer
    names: tuple[str, ...]
    kept_dense: tuple[str, ...]
    started_s: float

    @classmethod
    def prepare(cls, recipe: Recipe, job: Job) -> _Study:
        """Raises RecipeError where there is nothing to quantize, and what loading raises."""
        require_separable(recipe)
        loaded = _load_dense(recipe, job)
        started_s, device = time.monotonic(), torch.device(recipe.device)
        # Every layer is tried, those of quantization.skip too.
        options = recipe.quantization.model_copy(update={"skip": ()})
        kept = tuple(quantization.layers_to_keep_dense(loaded.model, options, device))
        text = builtin_evaluation()
        tokens = passages(text.documents, _encoder(loaded), int(job.request["tokens"]))
        return cls(
            recipe=recipe,
            loaded=loaded,
            text=text,
            judge=Judge(loaded.model, tokens),
            pack=packer_of(loaded, recipe),
            names=linear_layers(loaded.model, kept),
            kept_dense=kept,
            started_s=started_s,
        )

    def answer(self, by: Grouping, measured: Sequence[GroupSensitivity]) -> Sensitivity:
        """``measured`` has all layers together first."""
        together, *groups = measured
        linears = linear_layers(self.loaded.model, ())
        return Sensitivity(
            scheme=self.recipe.quantization.scheme,
            by=by,
            groups=tuple(sorted(groups, key=lambda each: each.kl_mean, reverse=True)),
            together=together,
            dense_weights_bytes=self.loaded.weights_bytes,
            unpacked=tuple(name for name in self.kept_dense if name in linears),
            tokens=self.judge.positions,
            text_name=self.text.name,
            text_sha256=self.text.sha256,
            seconds=time.monotonic() - self.started_s,
            random_weights=self.loaded.random_weights,
        )


class Judge:
    """What a model predicts now, remembered, and how far its predictions are from that later."""

    def __init__(self, model: PreTrainedModel, token_ids: Sequence[Sequence[int]]) -> None:
        """``token_ids``: passages of equal length. Keeps positions x vocabulary fp32 numbers on the device."""
        self.model = model
        self._batches = [
            torch.tensor(token_ids[start : start + _PASSAGES_AT_ONCE], device=model.device)
            for start in range(0, len(token_ids), _PASSAGES_AT_ONCE)
        ]
        self._reference = [self._log_probabilities(batch) for batch in self._batches]

    @property
    def positions(self) -> int:
        """Scored positions."""
        return sum(batch.numel() for batch in self._batches)

    def distance(self) -> tuple[float, float, float]:
        """Mean and largest KL(then || now) in nats, and the share of positions with the same likeliest token."""
        divergences, same = [], []
        for batch, then in zip(self._batches, self._reference, strict=True):
            now = self._log_probabilities(batch)
            same.append(then.argmax(-1) == now.argmax(-1))
            divergences.append((then.exp() * (then - now)).sum(-1).clamp(min=0))
        kl = torch.cat(divergences).flatten()
        return kl.mean().item(), kl.max().item(), torch.cat(same).float().mean().item()

    @torch.inference_mode()
    def _log_probabilities(self, batch: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=batch, use_cache=False).logits
        return logits.float().log_softmax(-1)


def measure(judge: Judge, groups: Groups, pack: Packer) -> Iterator[GroupSensitivity]:
    """All groups packed together first, then each alone, in order."""
    everything = tuple(name for names in groups.values() for name in names)
    yield _measure_one(judge, TOGETHER, everything, pack)
    for pattern, names in groups.items():
        yield _measure_one(judge, pattern, names, pack)


def grouped(names: Iterable[str], by: Grouping) -> dict[str, tuple[str, ...]]:
    """Layer names by a quantization.skip pattern that names just these: a decoder layer's, or a kind's."""
    pattern_of = _layer_pattern if by == "layer" else _module_pattern
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        groups[pattern_of(name)] = (*groups.get(pattern_of(name), ()), name)
    return groups


def passages(
    documents: Sequence[Document], encode: Callable[[str], Sequence[int]], tokens: int
) -> list[Sequence[int]]:
    """About ``tokens`` tokens in passages of ``PASSAGE_TOKENS``, the openings of documents spread over the text.

    Raises InputError when no document is as long as one passage.
    """
    wanted = max(1, tokens // PASSAGE_TOKENS)
    stride = max(1, len(documents) // wanted)
    ordered = (document for start in range(stride) for document in documents[start::stride])
    found: list[Sequence[int]] = []
    for document in ordered:
        ids = encode(_words(document))[:PASSAGE_TOKENS]
        if len(ids) == PASSAGE_TOKENS:
            found.append(ids)
        if len(found) == wanted:
            break
    if not found:
        raise InputError(f"No document of the text has {PASSAGE_TOKENS} tokens.", "Give a longer text.")
    return found


def packer_of(loaded: LoadedModel, recipe: Recipe) -> Packer:
    """How the Recipe's scheme packs some layers of this dense model. Raises RecipeError where it cannot."""
    dtype, device = next(loaded.model.parameters()).dtype, torch.device(recipe.device)
    if SCHEMES[recipe.quantization.scheme].convert is None:
        config = quantization.configure(recipe.quantization, dtype, device, ())
        assert config is not None, "a scheme applies or converts"
        return pack_layers(config)
    surroundings = Conversion(
        recipe=recipe.model_copy(update={"model": loaded.resolved.ref}),
        dtype=dtype,
        device=device,
        keep_dense=(),
        codec=loaded.codec,
        report=lambda fraction, message: None,
    )

    def convert(model: PreTrainedModel, names: Sequence[str]) -> None:
        others = tuple(name for name in linear_layers(model, names))
        quantization.convert(model, replace(surroundings, keep_dense=others))

    return convert


def _measure_one(judge: Judge, pattern: str, names: tuple[str, ...], pack: Packer) -> GroupSensitivity:
    with packed_for_a_while(judge.model, names, pack) as (dense_bytes, packed_bytes):
        mean, highest, top1 = judge.distance()
    return GroupSensitivity(
        name=pattern.removeprefix("*.").removesuffix(".*"),
        pattern=pattern if pattern != TOGETHER else "*",
        modules=len(names),
        kl_mean=mean,
        kl_max=highest,
        top1=top1,
        dense_bytes=dense_bytes,
        packed_bytes=packed_bytes,
    )


def _layer_pattern(name: str) -> str:
    layer = re.match(r"(?:.*?\.)?\d+(?=\.)", name)
    return f"{layer.group()}.*" if layer else name


def _module_pattern(name: str) -> str:
    kind = name.rpartition(".")[2]
    return f"*.{kind}" if "." in name else kind


def _words(document: Document) -> str:
    return document.text or "\n".join(message.content for message in document.messages)


def _load_dense(recipe: Recipe, job: Job) -> LoadedModel:
    """Raises RecipeError where the dense model is not what the scheme packs, and what loading raises."""
    token = job.secrets.get("hub_token")
    resolved, dense = catalog.resolve(recipe.model, hub_token=token), recipe.replace({"quantization": {}})
    if SCHEMES[recipe.quantization.scheme].apply and resolved.architecture.model_type in LINEAR_EXPERTS:
        raise RecipeError(
            f"{resolved.title} is a mixture of experts, which the dense model fuses: no scheme packs them there.",
            "Look into a model without experts.",
        )
    loaded = loader.load(resolved, dense, job.tell, token)
    if quantization.quantized_modules(loaded.model):
        raise RecipeError(
            f"{loaded.title} is a quantized checkpoint: its layers have no dense originals.",
            "Look into the dense model that it was made from.",
        )
    return loaded


def _encoder(loaded: LoadedModel) -> Callable[[str], Sequence[int]]:
    """With the special tokens that the model's own tokenizer puts before a text."""
    return lambda text: loaded.tokenizer.encode(text).ids
