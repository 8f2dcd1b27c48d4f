"""Quantization: from a Recipe's options to transformers' configuration, and what came out of it.

A scheme is one function ``(options, dtype, keep_dense) -> quantization config or None`` named in its row of
``schemes.py``. transformers calls the library for each weight as it arrives, so a quantized model is never
dense as a whole. This file does not know any scheme, nor where weights come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from importlib import import_module

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from mcp_core.errors import RecipeError
from mcp_core.recipe import Quantization
from mcp_core.schemes import SCHEMES

__all__ = ["configure", "dense_matrices", "names_to_keep_dense", "quantized_modules", "require_packed"]

Apply = Callable[[Quantization, torch.dtype, Sequence[str]], QuantizationConfigMixin | None]


def configure(
    options: Quantization, dtype: torch.dtype, keep_dense: Sequence[str]
) -> QuantizationConfigMixin | None:
    """What ``from_pretrained`` takes for these options; None keeps every weight in ``dtype``.

    ``keep_dense`` are exact module names (see ``names_to_keep_dense``).
    """
    module, _, function = SCHEMES[options.scheme].apply.partition(":")
    apply: Apply = getattr(import_module(module), function)
    return apply(options, dtype, keep_dense)


def names_to_keep_dense(model: PreTrainedModel, patterns: Sequence[str]) -> tuple[str, ...]:
    """Names of the linear layers that stay dense: the output layer, and what ``patterns`` (fnmatch) name.

    ``model`` may be on the meta device. Raises RecipeError for a pattern that names no linear layer.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in linears):
            raise RecipeError(
                f'quantization.skip: "{pattern}" names no linear layer of this model.',
                f"Its layers are named like {_example(linears)}.",
            )
    output = model.get_output_embeddings()
    return tuple(
        name
        for name, module in linears.items()
        if module is output or any(fnmatchcase(name, pattern) for pattern in patterns)
    )


def quantized_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules whose weight is packed, read from the loaded model."""
    return tuple(name for name, module in model.named_modules() if _is_packed(getattr(module, "weight", None)))


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


def _is_packed(weight: object) -> bool:
    """Libraries pack a weight into a subclass of Parameter or of Tensor."""
    return isinstance(weight, torch.Tensor) and type(weight) not in {torch.Tensor, nn.Parameter}


def _example(names: Iterable[str]) -> str:
    return next(iter(names), "model.layers.0.mlp.up_proj")
