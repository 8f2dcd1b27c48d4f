"""The quantization schemes there are: one row each, with what it needs, weighs and ships as.

Adding a scheme is one row here, one function in ``memory/quantization/`` and one for its bytes in
``models/packing.py``. This file does not know how a scheme is applied: it carries the function's import path,
because applying needs torch and this must not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcp_core.recipe import DType, Quantization, SchemeName

__all__ = ["SCHEMES", "Scheme", "reason_to_keep_dense"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """One quantization scheme.

    ``about`` says what it is and what it usually costs, ``needs`` which hardware, dtype and shapes. ``bits`` are
    stored bits per quantized weight without scales; ``block`` weights share one scale of ``scale_bits`` (0 = one
    scale per output row). Either ``apply`` or ``convert`` is ``module:function`` of the heavy side: the first
    packs weights as they arrive, the second packs a model that was loaded dense. ``dtypes`` are those of the
    dense weights and of activations that it can be used with.
    """

    name: SchemeName
    title: str
    about: str
    bits: int
    block: int
    scale_bits: int
    library: str | None
    devices: tuple[Literal["cpu", "cuda"], ...]
    lossless: bool
    deployable_as: str
    apply: str | None = None
    convert: str | None = None
    needs: str = ""
    dtypes: tuple[DType, ...] = ("fp32", "bf16", "fp16")
    min_capability: tuple[int, int] | None = None
    double_quant: bool = False


SCHEMES: dict[SchemeName, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            name="none",
            title="None",
            about="Weights stay in the chosen dtype.",
            bits=0,
            block=0,
            scale_bits=0,
            library=None,
            devices=("cpu", "cuda"),
            lossless=True,
            deployable_as="safetensors; any engine",
        ),
        Scheme(
            name="bnb-int8",
            title="bitsandbytes 8-bit (LLM.int8)",
            about="Half of bf16's weight memory; outlier columns are computed apart. Slower than bf16 when eager.",
            bits=8,
            block=0,
            scale_bits=32,
            library="bitsandbytes",
            devices=("cpu", "cuda"),
            lossless=False,
            deployable_as="vLLM --quantization bitsandbytes (8-bit checkpoints); transformers",
            apply="mcp_core.memory.quantization.bnb:quantize_int8",
        ),
        Scheme(
            name="bnb-nf4",
            title="bitsandbytes 4-bit NF4",
            about="A quarter of bf16's weight memory; 16 levels placed for normally distributed weights.",
            bits=4,
            block=64,
            scale_bits=32,
            library="bitsandbytes",
            devices=("cpu", "cuda"),
            lossless=False,
            deployable_as="vLLM --quantization bitsandbytes; transformers",
            apply="mcp_core.memory.quantization.bnb:quantize_nf4",
            double_quant=True,
        ),
        Scheme(
            name="bnb-fp4",
            title="bitsandbytes 4-bit FP4",
            about="As NF4 with floating-point levels; usually loses more than NF4.",
            bits=4,
            block=64,
            scale_bits=32,
            library="bitsandbytes",
            devices=("cpu", "cuda"),
            lossless=False,
            deployable_as="transformers only",
            apply="mcp_core.memory.quantization.bnb:quantize_fp4",
            double_quant=True,
        ),
        Scheme(
            name="torchao-int8-weight-only",
            title="torchao int8 weight-only",
            about="Half of bf16's weight memory, one scale per output row; weights are expanded at each use.",
            bits=8,
            block=0,
            scale_bits=40,  # an fp32 scale and an int8 zero point
            library="torchao",
            devices=("cpu", "cuda"),
            lossless=False,
            deployable_as="vLLM (torchao checkpoint); transformers",
            apply="mcp_core.memory.quantization.torchao_int8:quantize_weight_only",
        ),
    )
}


def reason_to_keep_dense(options: Quantization, rows: int, columns: int, device_kind: str) -> str:
    """Why this scheme cannot pack a matrix of ``rows`` outputs and ``columns`` inputs; empty where it can."""
    return ""
