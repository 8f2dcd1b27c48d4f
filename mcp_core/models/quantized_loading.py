"""Loading of checkpoints that come quantized: what transformers has to be told, and what came of it.

The packed tensors are read one by one like any others; nothing in a checkpoint is executed. This file does not
know which methods there are (``stored_quantization.py``) or how weights are read (``checkpoint.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

from mcp_core.memory import quantization
from mcp_core.models.stored_quantization import StoredQuantization

__all__ = ["configure", "finish", "headers_known", "packed_modules", "scheme_name", "skipped_modules"]

# Tensors of layers whose library keeps no parameter named weight.
_PACKED_TENSORS = ("qweight", "weight_packed")


def configure(config: PretrainedConfig, stored: StoredQuantization, *, packed: bool) -> None:
    """Tell transformers whether weights stay ``packed``; left alone it asks the machine, not the chosen device."""
    document: dict[str, Any] = config.quantization_config
    if stored.method in {"fp8", "mxfp4"}:
        document["dequantize"] = not packed
    elif stored.method == "compressed-tensors":
        document["use_optimized_inference"] = packed


@contextmanager
def headers_known(files: Sequence[Path]) -> Iterator[None]:
    """transformers' torchao loader sees the headers of ``files``; it reads them itself only when it opens files.

    Its table of quantizers is changed meanwhile: one load at a time.
    """

    class _WithHeaders(TorchAoHfQuantizer):  # type: ignore[misc]
        def _process_model_before_weight_loading(
            self, model: Any, checkpoint_files: Any = None, **rest: Any
        ) -> None:
            names = [str(path) for path in files]
            super()._process_model_before_weight_loading(model, checkpoint_files=names, **rest)

    before = AUTO_QUANTIZER_MAPPING["torchao"]
    AUTO_QUANTIZER_MAPPING["torchao"] = _WithHeaders
    try:
        yield
    finally:
        AUTO_QUANTIZER_MAPPING["torchao"] = before


def finish(model: PreTrainedModel, dtype: torch.dtype, *, packed: bool) -> None:
    """Expand now what compressed-tensors would at the first forward pass, so that memory is read after it.

    Of a checkpoint that transformers expanded itself, the weights that were dense before get ``dtype`` too.
    """
    if hasattr(model, "ct_decompress_hook"):
        model.hf_quantizer.compressor.decompress_model(model)
    elif not packed:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)


def scheme_name(stored: StoredQuantization, dtype: str, *, packed: bool) -> str:
    """What Effective.scheme says: the checkpoint's own method, and whether its weights were expanded."""
    return f"checkpoint:{stored.label}" + ("" if packed else f", expanded to {dtype}")


def packed_modules(model: nn.Module) -> frozenset[str]:
    """Modules whose weight is packed, or computes with what the checkpoint's quantization left of it."""
    found = set(quantization.quantized_modules(model))
    found |= {name for name, module in model.named_modules() if _is_quantized(module)}
    return frozenset(found)


def skipped_modules(model: nn.Module) -> dict[str, str]:
    """Modules with a dense matrix that the checkpoint did not quantize, each with that reason."""
    packed = packed_modules(model)
    return {
        name: "the checkpoint keeps it dense"
        for name in quantization.dense_matrices(model)
        if packed and name not in packed
    }


def _is_quantized(module: nn.Module) -> bool:
    if any(hasattr(module, name) for name in _PACKED_TENSORS):
        return True
    if getattr(getattr(module, "quantization_scheme", None), "weights", None) is not None:  # compressed-tensors
        return True
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dtype.itemsize == 1
