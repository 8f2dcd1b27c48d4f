"""Some linear layers of a dense model packed for a while, then put back as they were.

The model is loaded once; only the layers in question exist twice. This file does not know which layers are
worth packing, nor how a whole model is loaded packed (``models/loader.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from mcp_core.errors import RecipeError
from mcp_core.memory.storage import weights_bytes

__all__ = ["Packer", "linear_layers", "pack_layers", "packed_for_a_while"]

# Packs the named layers of a model in place.
Packer = Callable[[PreTrainedModel, Sequence[str]], None]


def linear_layers(model: PreTrainedModel, keep_dense: Collection[str]) -> tuple[str, ...]:
    """Names of the linear layers that may be packed: all but ``keep_dense`` (exact names)."""
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in keep_dense and module is not model.get_output_embeddings()
    )


@contextmanager
def packed_for_a_while(model: PreTrainedModel, names: Sequence[str], pack: Packer) -> Iterator[tuple[int, int]]:
    """Inside the ``with`` these layers are packed; gives their weights' bytes dense and packed."""
    originals = {name: _linear(model, name) for name in names}
    try:
        for name, layer in originals.items():
            model.set_submodule(name, _twin(layer))  # libraries change modules and hang hooks on them
        pack(model, names)
        biases = sum(layer.bias.nbytes for layer in originals.values() if layer.bias is not None)
        packed = sum(weights_bytes(model.get_submodule(name)) for name in names) - biases
        yield sum(layer.weight.nbytes for layer in originals.values()), packed
    finally:
        for name, layer in originals.items():
            packed_layer = model.get_submodule(name)
            model.set_submodule(name, layer)
            if packed_layer is not layer:
                _empty(packed_layer)


def pack_layers(config: QuantizationConfigMixin) -> Packer:
    """A Packer that does to a layer what ``from_pretrained`` with this configuration does to it on arrival.

    Raises RecipeError for a library that is not known here.
    """
    if isinstance(config, BitsAndBytesConfig):
        pack_one = _bnb_int8 if config.load_in_8bit else _bnb_four_bit
    elif isinstance(config, TorchAoConfig):
        pack_one = _torchao
    else:
        raise RecipeError(
            f"quantization.scheme: {type(config).__name__} cannot be applied to a few layers only.",
            "Choose another scheme.",
        )

    def pack(model: PreTrainedModel, names: Sequence[str]) -> None:
        for name in names:
            model.set_submodule(name, pack_one(_linear(model, name), config).eval())

    return pack


def _linear(model: PreTrainedModel, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _empty(layer: nn.Module) -> None:
    """Libraries tie a packed layer to itself, so its tensors would stay until the collector looks."""
    for module in layer.modules():
        for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            delattr(module, name)


def _twin(layer: nn.Linear) -> nn.Linear:
    """Another module with the same weight and bias."""
    with torch.device("meta"):
        twin = nn.Linear(layer.in_features, layer.out_features, bias=False)
    twin.weight, twin.bias = layer.weight, layer.bias
    return twin.eval()


def _bnb_four_bit(layer: nn.Linear, config: BitsAndBytesConfig) -> nn.Module:
    import bitsandbytes as bnb

    with torch.device("meta"):
        packed: nn.Module = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=False,
            compute_dtype=config.bnb_4bit_compute_dtype,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
        )
    weight = bnb.nn.Params4bit(
        layer.weight.data,
        requires_grad=False,
        compress_statistics=config.bnb_4bit_use_double_quant,
        quant_type=config.bnb_4bit_quant_type,
        module=packed,
    )
    packed.weight = weight.to(layer.weight.device)  # moving it is what packs it
    packed.bias = layer.bias
    return packed


def _bnb_int8(layer: nn.Linear, config: BitsAndBytesConfig) -> nn.Module:
    import bitsandbytes as bnb

    with torch.device("meta"):
        packed: nn.Module = bnb.nn.Linear8bitLt(
            layer.in_features,
            layer.out_features,
            bias=False,
            has_fp16_weights=False,
            threshold=config.llm_int8_threshold,
        )
    weight = bnb.nn.Int8Params(layer.weight.data.to("cpu"), requires_grad=False, has_fp16_weights=False)
    packed.weight = weight.to(layer.weight.device)
    packed.bias = layer.bias
    return packed


def _torchao(layer: nn.Linear, config: TorchAoConfig) -> nn.Module:
    from torchao.quantization import quantize_

    holder = nn.Sequential(layer)
    quantize_(holder, config.get_apply_tensor_subclass(), filter_fn=lambda module, _: module is layer)
    return holder[0]
