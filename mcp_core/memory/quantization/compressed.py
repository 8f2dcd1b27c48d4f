"""compressed-tensors: torchao's int8 and fp8 layers written in vLLM's and SGLang's own checkpoint format.

Only names and configuration change; every weight and scale is the number that was measured here. This file does
not know where a checkpoint is written (``saving.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mcp_core.recipe import SchemeName

__all__ = ["compressed_config", "compressed_tensors", "packed_layers"]

# Per scheme: the format's name, what its numbers are, and how activations get their scales.
_TOKEN_BY_TOKEN = {"strategy": "token", "dynamic": True}
_FORMATS: dict[SchemeName, tuple[str, str, dict[str, Any]]] = {
    "torchao-int8-dynamic": ("int-quantized", "int", _TOKEN_BY_TOKEN),
    "torchao-fp8-dynamic": ("float-quantized", "float", _TOKEN_BY_TOKEN),
    "torchao-int8-static": ("int-quantized", "int", {"strategy": "tensor", "dynamic": False}),
}


def compressed_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor by its checkpoint name: a packed layer as ``weight`` and its scales, the rest as is."""
    tied = model.config.get_text_config(decoder=True).tie_word_embeddings
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if tied and module is output:
            continue
        for own, parameter in module.named_parameters(recurse=False):
            yield from _parts(f"{name}.{own}", parameter)


def packed_layers(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the layers whose weight is packed."""
    return tuple(
        name for name, module in model.named_modules() if hasattr(getattr(module, "weight", None), "qdata")
    )


def compressed_config(model: PreTrainedModel, scheme: SchemeName, kept_dense: tuple[str, ...]) -> dict[str, Any]:
    """The ``quantization_config`` of config.json; ``kept_dense`` are names of layers that are not packed."""
    name, kind, activations = _FORMATS[scheme]
    numbers = {"num_bits": 8, "type": kind, "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": numbers | {"strategy": "channel", "dynamic": False},
        "input_activations": numbers | activations,
        "output_activations": None,
    }
    linears = [layer for layer in kept_dense if isinstance(model.get_submodule(layer), nn.Linear)]
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": linears,
        "kv_cache_scheme": None,
    }


def _parts(name: str, parameter: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    packed: Any = parameter
    if hasattr(packed, "qdata"):
        yield name, packed.qdata
        yield f"{name}_scale", packed.scale.reshape(packed.qdata.shape[0], 1)
        calibrated = getattr(packed, "act_quant_scale", None)
        if calibrated is not None:
            yield f"{name.removesuffix('weight')}input_scale", calibrated.reshape(1)
    else:
        yield name, parameter.data
