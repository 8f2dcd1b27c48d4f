"""Classic dynamic quantization: ``torch.ao.quantization``'s int8 linear layers, as older articles use them.

Weights have one scale a matrix; activations one a call, over all its tokens, which is why long prompts lose so
much. transformers does not know it, so the model is loaded dense and its layers are exchanged one by one. This
file does not know which layers those are (``layers_to_keep_dense``).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as DynamicLinear
from torch.ao.quantization import default_dynamic_qconfig
from transformers import PreTrainedModel

from mcp_core.memory.quantization.conversion import Conversion

__all__ = ["quantize_dynamic"]

# Of torch's kernels the one for x86 packs tightest; "onednn" and "qnnpack" keep a second copy of each weight.
_ENGINE = "x86"


def quantize_dynamic(model: PreTrainedModel, conversion: Conversion) -> None:
    """Exchange every linear layer but ``keep_dense``; each dense weight is freed before the next is packed."""
    if _ENGINE in torch.backends.quantized.supported_engines:
        torch.backends.quantized.engine = _ENGINE
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    names = [name for name in names if name not in conversion.keep_dense]
    for index, name in enumerate(names):
        model.set_submodule(name, _packed(model.get_submodule(name)))
        conversion.report((index + 1) / len(names), "Quantizing to classic-dynamic.")


def _packed(layer: Any) -> nn.Module:
    layer.qconfig = default_dynamic_qconfig
    with warnings.catch_warnings():
        # torch says at every layer that this way is deprecated; the scheme's row says what it costs.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        from_float: Any = DynamicLinear.from_float
        packed: nn.Module = from_float(layer)
    return packed.eval()
