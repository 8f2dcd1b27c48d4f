"""What a model's weights occupy: unique tensor storages, packed quantized tensors included.

torch's classic quantized layers keep theirs in opaque objects; those are computed from their shapes.

A model's own ``state_dict`` or ``get_memory_footprint`` miss what quantization libraries keep beside a packed
weight (scales, code books). This file does not know how a model was quantized or what a process occupies.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as ClassicLinear

from mcp_core.models.packing import classic_bytes

__all__ = ["opaque_bytes", "storages_of", "weights_bytes"]


def weights_bytes(model: nn.Module) -> int:
    """Bytes of the unique storages behind every parameter and buffer, and of opaque weights; tied ones once."""
    modules = list(model.modules())
    storages = chain.from_iterable(storages_of(module) for module in modules)
    unique = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(unique.values()) + sum(opaque_bytes(module) for module in modules)


def opaque_bytes(module: nn.Module) -> int:
    """Bytes of one module's own weight and bias that no tensor shows: a classic quantized layer's, else 0."""
    if not isinstance(module, ClassicLinear):
        return 0
    layer: Any = module  # its methods have no types
    bias = 0 if layer.bias() is None else layer.out_features * 4
    return classic_bytes(layer.out_features, layer.in_features) + bias


def storages_of(module: nn.Module) -> Iterator[torch.UntypedStorage]:
    """The storages of one module's own tensors (not its children's), repeated where tensors share one."""
    own = chain(module.parameters(recurse=False), module.buffers(recurse=False), _bnb_int8_scales(module))
    for tensor in chain.from_iterable(_with_scales(each) for each in own):
        yield tensor.untyped_storage()


def _with_scales(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that make up one parameter: itself, or a packed one's parts and their scales."""
    if hasattr(tensor, "__tensor_flatten__"):  # torchao's subclasses have no storage of their own
        inner_names, _ = tensor.__tensor_flatten__()
        for name in inner_names:
            yield from _with_scales(getattr(tensor, name))
        return
    yield tensor
    yield from _tensors(getattr(tensor, "SCB", None))
    quant_state = getattr(tensor, "quant_state", None)
    while quant_state is not None:  # double quantization nests a second state
        yield from _tensors(quant_state.absmax, quant_state.code, quant_state.offset)
        quant_state = getattr(quant_state, "state2", None)  # gone once the scales were laid out for a CPU


def _bnb_int8_scales(module: nn.Module) -> Iterator[torch.Tensor]:
    """bitsandbytes moves an 8-bit weight's row scales from the parameter to the module at its first use."""
    return _tensors(getattr(getattr(module, "state", None), "SCB", None))


def _tensors(*values: Any) -> Iterator[torch.Tensor]:
    return (value for value in values if isinstance(value, torch.Tensor))
