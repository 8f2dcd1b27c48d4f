"""Quantization: how a scheme is applied, which layers stay dense and why, and what came out packed.

A scheme is one function, named in its row of ``schemes.py``, of one of two kinds. ``apply`` gives transformers a
configuration: the library packs each weight as it arrives, so the model is never dense as a whole. ``convert``
changes a model that was loaded dense. This file does not know any scheme, nor where weights come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as ClassicLinear
from transformers import PreTrainedModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from mcp_core.errors import RecipeError
from mcp_core.memory.quantization.conversion import Conversion
from mcp_core.recipe import Quantization
from mcp_core.results import Calibrated
from mcp_core.schemes import SCHEMES, reason_to_keep_dense

__all__ = [
    "Conversion",
    "configure",
    "convert",
    "dense_matrices",
    "layers_to_keep_dense",
    "quantized_modules",
    "require_packed",
    "skip_reasons",
]

Apply = Callable[[Quantization, torch.dtype, torch.device, Sequence[str]], QuantizationConfigMixin | None]
Convert = Callable[[PreTrainedModel, Conversion], Calibrated | None]


def configure(
    options: Quantization, dtype: torch.dtype, device: torch.device, keep_dense: Iterable[str]
) -> QuantizationConfigMixin | None:
    """What ``from_pretrained`` takes for these options; None loads every weight in ``dtype``.

    ``keep_dense`` are exact module names (see ``layers_to_keep_dense``).
    """
    path = SCHEMES[options.scheme].apply
    if path is None:
        return None
    apply: Apply = _function(path)
    return apply(options, dtype, device, tuple(keep_dense))


def convert(model: PreTrainedModel, conversion: Conversion) -> Calibrated | None:
    """Pack a model that was loaded dense, in place, where its scheme works that way; else nothing.

    Returns what it was calibrated with, None where it was not.
    """
    path = SCHEMES[conversion.options.scheme].convert
    if path is None:
        return None
    change: Convert = _function(path)
    return change(model, conversion)


def layers_to_keep_dense(model: PreTrainedModel, options: Quantization, device: torch.device) -> dict[str, str]:
    """Names of the linear layers that stay dense, each with its reason.

    They are the output layer, what ``options.skip`` (fnmatch) names, and shapes that the scheme cannot pack.
    ``model`` may be on the meta device. Raises RecipeError for a pattern that names no linear layer.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for pattern in options.skip:
        if not any(fnmatchcase(name, pattern) for name in linears):
            raise RecipeError(
                f'quantization.skip: "{pattern}" names no linear layer of this model.',
                f"Its layers are named like {_example(linears)}.",
            )
    output = model.get_output_embeddings()
    reasons: dict[str, str] = {}
    for name, module in linears.items():
        rows, columns = module.weight.shape
        if module is output:
            reasons[name] = "output layer"
        elif any(fnmatchcase(name, pattern) for pattern in options.skip):
            reasons[name] = "quantization.skip"
        elif reason := reason_to_keep_dense(options, rows, columns, device.type):
            reasons[name] = reason
    return reasons


def quantized_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules whose weight is packed, read from the loaded model."""
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, ClassicLinear) or _is_packed(getattr(module, "weight", None))
    )


def require_packed(model: nn.Module, options: Quantization) -> None:
    """Raise RecipeError when the scheme packed nothing, as with a model whose layers it does not know."""
    if options.scheme != "none" and not quantized_modules(model):
        raise RecipeError(
            f"quantization.scheme: {options.scheme} packs no layer of this model.",
            "Choose another scheme, or fewer quantization.skip patterns.",
        )


def dense_matrices(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules, embeddings apart, that hold a dense matrix, read from the loaded model."""
    return tuple(
        name
        for name, module in model.named_modules()
        if not isinstance(module, nn.Embedding)
        and any(each.dim() > 1 and not _is_packed(each) for each in module.parameters(recurse=False))
    )


def skip_reasons(model: nn.Module, kept_dense: Mapping[str, str]) -> dict[str, str]:
    """Why each of ``dense_matrices`` is dense; ``kept_dense`` is what ``layers_to_keep_dense`` said."""
    return {name: kept_dense.get(name) or _unplanned(model.get_submodule(name)) for name in dense_matrices(model)}


def _unplanned(module: nn.Module) -> str:
    return (
        "the scheme left it dense"
        if isinstance(module, nn.Linear)
        else f"{type(module).__name__} is no linear layer"
    )


def _function(path: str) -> Any:
    module, _, function = path.partition(":")
    return getattr(import_module(module), function)


def _is_packed(weight: object) -> bool:
    """Libraries pack a weight into a subclass of Parameter or of Tensor."""
    return isinstance(weight, torch.Tensor) and type(weight) not in {torch.Tensor, nn.Parameter}


def _example(names: Iterable[str]) -> str:
    return next(iter(names), "model.layers.0.mlp.up_proj")
