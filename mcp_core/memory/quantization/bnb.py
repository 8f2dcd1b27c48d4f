"""bitsandbytes: LLM.int8 with one scale a row, and 4-bit NF4 and FP4 with one scale per 64 weights.

This file does not know which devices have kernels for it (``schemes.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from transformers import BitsAndBytesConfig

from mcp_core.recipe import Quantization

__all__ = ["quantize_fp4", "quantize_int8", "quantize_nf4"]

_OUTLIER_THRESHOLD = 6.0  # the LLM.int8 paper's, and the library's own


def quantize_int8(
    options: Quantization, dtype: torch.dtype, device: torch.device, keep_dense: Sequence[str]
) -> BitsAndBytesConfig:
    """LLM.int8: rows scaled by their largest weight; activation columns with outliers are computed apart."""
    # At every product it warns that bf16 inputs become fp16, which is what the scheme is.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    threshold = _OUTLIER_THRESHOLD if options.outlier_threshold is None else options.outlier_threshold
    return BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_threshold=threshold, llm_int8_skip_modules=list(keep_dense)
    )


def quantize_nf4(
    options: Quantization, dtype: torch.dtype, device: torch.device, keep_dense: Sequence[str]
) -> BitsAndBytesConfig:
    """NF4: 16 levels at the quantiles of a normal distribution; computes in ``dtype``."""
    return _four_bit("nf4", options, dtype, keep_dense)


def quantize_fp4(
    options: Quantization, dtype: torch.dtype, device: torch.device, keep_dense: Sequence[str]
) -> BitsAndBytesConfig:
    """FP4: 16 floating-point levels; computes in ``dtype``."""
    return _four_bit("fp4", options, dtype, keep_dense)


def _four_bit(
    levels: Literal["nf4", "fp4"], options: Quantization, dtype: torch.dtype, keep_dense: Sequence[str]
) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=levels,
        bnb_4bit_use_double_quant=options.double_quant,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(keep_dense),  # the 4-bit quantizer reads the same field
    )
