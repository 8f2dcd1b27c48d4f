"""What a model's weights occupy: unique tensor storages, packed quantized tensors included.

A model's own ``state_dict`` or ``get_memory_footprint`` miss what quantization libraries keep beside a packed
weight (scales, code books). This file does not know how a model was quantized or what a process occupies.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn

__all__ = ["storages_of", "weights_bytes"]


def weights_bytes(model: nn.Module) -> int:
    """Bytes of the unique storages behind every parameter and buffer; tied weights count once."""
    storages = chain.from_iterable(storages_of(module) for module in model.modules())
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


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
        quant_state = quant_state.state2


def _bnb_int8_scales(module: nn.Module) -> Iterator[torch.Tensor]:
    """bitsandbytes moves an 8-bit weight's row scales from the parameter to the module at its first use."""
    return _tensors(getattr(getattr(module, "state", None), "SCB", None))


def _tensors(*values: Any) -> Iterator[torch.Tensor]:
    return (value for value in values if isinstance(value, torch.Tensor))
