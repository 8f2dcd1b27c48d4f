"""Calibration: a text run through the dense model, and the ranges of its layers' inputs, kept for the next load.

Ranges are found once for a model, dtype, attention, text and size, whatever scheme or alpha then uses them; they
are kept under MCP_HOME/calibrations. A few passages are run last, so that ranges without them are known: on these
passages a choice can be judged that was not fitted to them. This file does not know how ranges become scales
(``quantization/torchao_static.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from mcp_core import paths, texts
from mcp_core.errors import RecipeError
from mcp_core.memory.activation_ranges import InputRange, Ranges, merged, watched
from mcp_core.memory.passages import Passages, held_out, passages, random_passages
from mcp_core.memory.quantization.conversion import Conversion
from mcp_core.results import AlphaLoss, Calibrated

__all__ = ["FoundRanges", "calibrate", "run_passages"]

# Counts up when ranges are found in another way, so that older ones are not reused.
_METHOD = 1
_RANGES, _PARTIAL, _ABOUT, _ALPHAS = "ranges.safetensors", "partial.safetensors", "about.json", "alphas.json"

Tell = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """What is run: a text of the registry, or random tokens for random weights."""

    name: str
    sha256: str | None
    read: Callable[[], Passages]

    @classmethod
    def of(cls, model: PreTrainedModel, conversion: Conversion) -> Self:
        """Raises InputError when the text is not kept here."""
        wanted = conversion.options.calibration
        if conversion.recipe.model.source == "shape":
            vocab = model.get_input_embeddings().weight.shape[0]
            return cls("random tokens", None, lambda: random_passages(vocab, wanted))
        text = texts.get(wanted.text)
        return cls(text.name, text.sha256, lambda: passages(text, conversion.codec, wanted))


@dataclass(frozen=True, slots=True, eq=False)
class FoundRanges:
    """Ranges by layer and where they came from; ``partial`` without those passages that ``held_out()`` gives.

    ``folder`` keeps it; None for a model whose content is not known by a hash.
    """

    ranges: Ranges
    partial: Ranges
    source: _Source
    samples: int
    tokens: int
    folder: Path | None
    reused: bool
    seconds: float

    def held_out(self) -> Passages:
        """Token ids of the passages to judge on."""
        return held_out(self.source.read())[1]

    def told(self, alpha: float | None, tried: tuple[AlphaLoss, ...], seconds: float) -> Calibrated:
        """As Effective and pages show it; ``seconds`` is what calibrating took in all."""
        return Calibrated(
            text=self.source.name,
            sha256=self.source.sha256,
            samples=self.samples,
            tokens=self.tokens,
            random_tokens=self.source.sha256 is None,
            alpha=alpha,
            alpha_search=tried,
            reused=self.reused,
            seconds=seconds,
        )

    def kept_alphas(self) -> tuple[AlphaLoss, ...]:
        """The alphas that an earlier search tried on these ranges; empty when there was none."""
        if self.folder is None:
            return ()
        try:
            return tuple(AlphaLoss(**each) for each in json.loads((self.folder / _ALPHAS).read_text()))
        except (OSError, ValueError, TypeError):
            return ()

    def keep_alphas(self, tried: tuple[AlphaLoss, ...]) -> None:
        """Keep a search for the next load."""
        if self.folder is not None:
            fresh = self.folder / f"{_ALPHAS}.{os.getpid()}"
            fresh.write_text(json.dumps([each.model_dump() for each in tried]))
            fresh.replace(self.folder / _ALPHAS)


def calibrate(model: PreTrainedModel, conversion: Conversion, tell: Tell) -> FoundRanges:
    """The ranges of this dense model's layers: kept ones where there are, else found now.

    ``tell(fraction, message)`` hears of every passage. Raises InputError (no such text), RecipeError (text too
    short, passages longer than the model's context, values that are not finite), RequestRejected (chat template).
    """
    started_s = time.monotonic()
    wanted, source = conversion.options.calibration, _Source.of(model, conversion)
    _require_context(model, wanted.tokens)
    folder = _folder(model, conversion, source)
    both = _read(folder) if folder is not None else None
    reused = both is not None
    if both is None:
        both = _run(model, source, tell)
        if folder is not None:
            _keep(folder, both, {"text": source.name, "samples": wanted.samples, "tokens": wanted.tokens})
    else:
        tell(1.0, f"{source.name}: ranges kept from an earlier calibration.")
    seconds = time.monotonic() - started_s
    return FoundRanges(*both, source, wanted.samples, wanted.tokens, folder, reused, seconds)


def _run(model: PreTrainedModel, source: _Source, tell: Tell) -> tuple[Ranges, Ranges]:
    """Ranges over all passages, and over those that are not held out."""
    token_ids = source.read()
    rest, judged = held_out(token_ids)
    done, steps = itertools.count(1), len(rest) + len(judged)

    def each_passage() -> None:
        index = next(done)
        tell((index - 1) / steps, f"{source.name}: passage {index} of {steps}.")

    partial = run_passages(model, rest, each_passage)
    return merged(partial, run_passages(model, judged, each_passage)), partial


def run_passages(model: PreTrainedModel, token_ids: Passages, before_each: Callable[[], None]) -> Ranges:
    """Run each passage alone, without gradients, and watch. Raises RecipeError for values that are not finite."""
    with watched(model) as ranges, torch.inference_mode():
        for ids in token_ids:
            before_each()
            model(input_ids=torch.tensor([ids], device=model.device), use_cache=False, logits_to_keep=1)
    for name, each in ranges.items():
        if not bool(torch.isfinite(each.channels).all()):
            raise RecipeError(
                f"quantization.calibration: inputs of {name} are not finite in {_dtype_name(model)}.",
                "Choose dtype bf16 or fp32.",
            )
    return ranges


def _require_context(model: PreTrainedModel, tokens: int) -> None:
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if longest is not None and tokens > longest:
        raise RecipeError(
            f"quantization.calibration.tokens: {tokens:,} asked, the model's context is {longest:,}.",
            f"Set it to at most {longest}.",
        )


def _folder(model: PreTrainedModel, conversion: Conversion, source: _Source) -> Path | None:
    """Where ranges of this model on this text are kept; None when the model's content is not known."""
    recipe = conversion.recipe
    if recipe.model.sha256 is None and recipe.model.source != "shape":
        return None
    content = recipe.model.sha256 or recipe.model.model_dump(mode="json")
    wanted = conversion.options.calibration
    parts = [
        _METHOD,
        content,
        _dtype_name(model),
        recipe.attention,
        source.sha256,
        wanted.samples,
        wanted.tokens,
    ]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return paths.home("calibrations") / key


def _dtype_name(model: PreTrainedModel) -> str:
    return str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")


def _read(folder: Path) -> tuple[Ranges, Ranges] | None:
    """Kept ranges; None when there are none, or none that can be read."""
    try:
        return _read_ranges(folder / _RANGES), _read_ranges(folder / _PARTIAL)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _read_ranges(path: Path) -> Ranges:
    with safe_open(path, framework="pt") as file:
        layers = json.loads(file.metadata()["layers"])
        return {name: InputRange(file.get_tensor(name), *shape) for name, shape in layers.items()}


def _keep(folder: Path, both: tuple[Ranges, Ranges], about: dict[str, Any]) -> None:
    """A reader finds all of it or nothing."""
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
    fresh.mkdir(exist_ok=True)
    for name, ranges in zip((_RANGES, _PARTIAL), both, strict=True):
        layers = json.dumps({layer: (each.dimensions, each.tokens) for layer, each in ranges.items()})
        save_file({layer: each.channels for layer, each in ranges.items()}, fresh / name, {"layers": layers})
    (fresh / _ABOUT).write_text(json.dumps(about))
    shutil.rmtree(folder, ignore_errors=True)  # one that could not be read
    with contextlib.suppress(OSError):  # another process kept the same meanwhile
        fresh.rename(folder)
    shutil.rmtree(fresh, ignore_errors=True)
