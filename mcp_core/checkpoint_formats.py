"""Checkpoint formats: in which a quantized model can be written, which cannot and why, and what was written.

This file does not know how one is written (``memory/quantization/saving.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mcp_core.errors import InputError, RecipeError
from mcp_core.recipe import Recipe, SchemeName
from mcp_core.schemes import SCHEMES

__all__ = [
    "FORMATS",
    "GGUF_CONVERTERS",
    "LLMCOMPRESSOR",
    "LLMCOMPRESSOR_VARIABLE",
    "CheckpointFormat",
    "SavedCheckpoint",
    "llmcompressor_python",
    "require_new_folder",
    "require_savable",
    "why_not_saved",
]

CheckpointFormat = Literal["library", "compressed-tensors", "llmcompressor", "gguf"]

FORMATS: dict[CheckpointFormat, str] = {
    "library": "as the scheme's own library writes it (bitsandbytes, torchao): transformers and vLLM load it",
    "compressed-tensors": "the same int8 or fp8 weights in vLLM's and SGLang's own format",
    "llmcompressor": "quantized anew by GPTQ, for vLLM and SGLang (compressed-tensors: W4A16, W8A16, SmoothQuant "
    "W8A8)",
    "gguf": "Q8_0 for llama.cpp, by llama.cpp's converter",
}
# llama.cpp's converter, as a checkout names it and as packages of it do.
GGUF_CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
# Names the Python interpreter that has llmcompressor: no release of it works beside MCP's transformers.
LLMCOMPRESSOR_VARIABLE = "MCP_LLMCOMPRESSOR_PYTHON"
# What llmcompressor makes for the schemes that it has a counterpart of.
LLMCOMPRESSOR: dict[SchemeName, str] = {
    "torchao-int4-weight-only": "W4A16 by GPTQ, with the Recipe's group size",
    "torchao-int8-weight-only": "W8A16 by GPTQ",
    "torchao-int8-static-smoothquant": "W8A8 by SmoothQuant and GPTQ, activations scaled token by token",
}
# Schemes whose packed weights are, number for number, what compressed-tensors stores.
_COMPRESSED: frozenset[SchemeName] = frozenset(
    {"torchao-int8-dynamic", "torchao-int8-static", "torchao-fp8-dynamic"}
)


class SavedCheckpoint(BaseModel):
    """A checkpoint that was written. ``folder`` holds safetensors (or one GGUF), config and tokenizer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    format: CheckpointFormat
    bytes: int = Field(description="All its files.")
    files: tuple[str, ...] = Field(description="Their names.")
    weights_bytes: int | None = Field(default=None, description="The quantized model in memory.")
    quantized_modules: int = 0
    skip_reasons: dict[str, str] = Field(default_factory=dict, description="Layers left dense, with the reason.")
    logit_difference: float | None = Field(
        default=None,
        description="Loaded again by transformers, against the model that was written: norm of the difference over "
        "norm of the logits. compressed-tensors rounds activations its own way; null: not compared, as with what "
        "llmcompressor quantized anew.",
    )
    logit_rounding: float | None = Field(
        default=None,
        description="What rounding activations, by compressed-tensors, changes of the same logits, same norm: "
        "two ways of rounding are about so far apart. null: the format computes as the model that was written.",
    )
    deployable_as: str = Field(default="", description="What serves it, with which flag.")

    @property
    def loaded_again(self) -> str:
        """What came of loading it again, in words; empty where it was not tried."""
        if self.logit_difference is None:
            return ""
        if not self.logit_difference:
            return "identical logits"
        rounding = (
            "" if self.logit_rounding is None else f" (rounding alone changes them by {self.logit_rounding:.1%})"
        )
        return (
            f"the same weights and scales; logits differ by {self.logit_difference:.1%}, because activations are "
            f"rounded by other code{rounding}"
        )


def why_not_saved(recipe: Recipe, device_kind: str, fmt: CheckpointFormat) -> tuple[str, str] | None:
    """(reason, what to do instead) where this Recipe cannot be written in that format; None where it can."""
    if recipe.model.source == "shape":
        return "a shape's weights are random; there is nothing to deploy.", "Choose a model with weights."
    return _REFUSALS[fmt](recipe, device_kind)


def require_savable(recipe: Recipe, device_kind: str, fmt: CheckpointFormat) -> None:
    """Raise RecipeError where ``why_not_saved`` has a reason."""
    refused = why_not_saved(recipe, device_kind, fmt)
    if refused is not None:
        reason, fix = refused
        scheme = recipe.quantization.scheme
        what = "An unquantized model" if scheme == "none" else scheme
        raise RecipeError(f"{what} cannot be written as {fmt}: {reason}", fix)


def require_new_folder(folder: Path) -> None:
    """Raise InputError unless ``folder`` can be made: nothing is overwritten."""
    if not folder.absolute().parent.is_dir():
        raise InputError(f"There is no folder {folder.absolute().parent}.", "Make it first, or write elsewhere.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already.", "Give the name of a folder that is new or empty.")


def _library(recipe: Recipe, device_kind: str) -> tuple[str, str] | None:
    scheme = SCHEMES[recipe.quantization.scheme]
    if scheme.bits == 0:
        return "nothing is quantized.", "Set quantization.scheme."
    if scheme.saved_as is None or (scheme.unsaved_because and device_kind == "cpu"):
        saved = ", ".join(each for each in SCHEMES if _is_saved(each, device_kind))
        return scheme.unsaved_because, f"Saved on {device_kind} are: {saved}."
    return None


def _compressed(recipe: Recipe, device_kind: str) -> tuple[str, str] | None:
    if recipe.quantization.activations != "symmetric":
        return "vLLM reads symmetric activations.", "Set quantization.activations to symmetric."
    if recipe.quantization.scheme in _COMPRESSED:
        return None
    others = "format llmcompressor" if recipe.quantization.scheme in LLMCOMPRESSOR else "a scheme that it has"
    return (
        "MCP rewrites the weights of some schemes only.",
        f"Choose {' or '.join(sorted(_COMPRESSED))}, or let llmcompressor quantize anew: {others}.",
    )


def llmcompressor_python() -> Path | None:
    """The interpreter that the user named for llmcompressor, as an absolute path, since it is started in another
    folder; None where none is, or it is no program."""
    named = os.environ.get(LLMCOMPRESSOR_VARIABLE)
    return Path(named).absolute() if named and os.access(named, os.X_OK) and Path(named).is_file() else None


def _llmcompressor(recipe: Recipe, device_kind: str) -> tuple[str, str] | None:
    if recipe.quantization.scheme not in LLMCOMPRESSOR:
        return "llmcompressor makes other formats.", f"It has counterparts of {', '.join(LLMCOMPRESSOR)}."
    if llmcompressor_python() is None:
        return (
            "no interpreter that has llmcompressor is named; it needs an older transformers than MCP, so an "
            "environment of its own.",
            "python -m venv E; E/bin/pip install llmcompressor; then set "
            f"{LLMCOMPRESSOR_VARIABLE} to E/bin/python and start MCP again.",
        )
    return None


def _gguf(recipe: Recipe, device_kind: str) -> tuple[str, str] | None:
    if recipe.quantization.scheme != "none":
        return "GGUF has types of its own.", "Set quantization.scheme to none."
    if not any(map(which, GGUF_CONVERTERS)):
        return (
            f"llama.cpp's converter ({GGUF_CONVERTERS[0]}) is not on the PATH.",
            "Clone github.com/ggml-org/llama.cpp and add its folder to PATH.",
        )
    return None


def _is_saved(name: SchemeName, device_kind: str) -> bool:
    scheme = SCHEMES[name]
    here = device_kind in scheme.devices and not (scheme.unsaved_because and device_kind == "cpu")
    return here and scheme.bits > 0 and scheme.saved_as is not None


_REFUSALS: dict[CheckpointFormat, Callable[[Recipe, str], tuple[str, str] | None]] = {
    "library": _library,
    "compressed-tensors": _compressed,
    "llmcompressor": _llmcompressor,
    "gguf": _gguf,
}
