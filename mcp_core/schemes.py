"""The quantization schemes there are: one row each, with what it needs, weighs and ships as.

Adding a scheme is one row here, one function in ``memory/quantization/`` and one for its bytes in
``models/packing.py``. This file does not know how a scheme is applied: it carries the function's import path,
because applying needs torch and this must not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcp_core.recipe import DType, Engine, Quantization, SchemeName

__all__ = ["INT4_GROUP_SIZES", "SCHEMES", "DeviceKind", "Scheme", "group_size_of", "reason_to_keep_dense"]

DeviceKind = Literal["cpu", "cuda"]

# Group sizes that the int4 kernels of each device have, and the one that is used when none is asked for: 64
# divides the widths of small models too (576 is no multiple of 128).
INT4_GROUP_SIZES: dict[DeviceKind, tuple[int, ...]] = {"cpu": (32, 64, 128), "cuda": (32, 64, 128, 256)}
_INT4_GROUP_SIZE = 64


@dataclass(frozen=True, slots=True)
class Scheme:
    """One quantization scheme.

    ``about`` says what it is and what it usually costs, ``needs`` which hardware, dtype and shapes, ``saved_as``
    the format of ``mcp-core quantize`` (None: it cannot be saved, ``unsaved_because`` says why). ``bits`` are
    stored bits per quantized weight without scales. Either ``apply`` or ``convert`` is ``module:function`` of the
    heavy side: the first packs weights as they arrive, the second packs a model that was loaded dense. ``dtypes``
    are those that the dense weights and the activations may have; ``min_capability`` is of NVIDIA devices. Those of
    another ``engine`` than transformers are applied by nobody here: that engine reads them from its files.
    """

    name: SchemeName
    title: str
    about: str
    needs: str
    bits: int
    library: str | None
    devices: tuple[DeviceKind, ...]
    lossless: bool
    deployable_as: str
    apply: str | None = None
    convert: str | None = None
    dtypes: tuple[DType, ...] = ("fp32", "bf16", "fp16")
    min_capability: tuple[int, int] | None = None
    double_quant: bool = False
    saved_as: str | None = None
    unsaved_because: str = ""
    engine: Engine = "transformers"


SCHEMES: dict[SchemeName, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            name="none",
            title="Unquantized",
            about="Weights stay in the chosen dtype.",
            needs="Any device.",
            bits=0,
            library=None,
            devices=("cpu", "cuda"),
            lossless=True,
            deployable_as="safetensors; any engine",
            saved_as="safetensors",
        ),
        Scheme(
            name="bnb-int8",
            title="bitsandbytes 8-bit (LLM.int8)",
            about="Half of bf16's weight memory; outlier columns are computed apart. Slower than bf16 when eager.",
            needs="CPU, or NVIDIA 7.5 and newer.",
            bits=8,
            library="bitsandbytes",
            devices=("cpu", "cuda"),
            min_capability=(7, 5),
            lossless=False,
            deployable_as="vLLM --quantization bitsandbytes (8-bit checkpoint); transformers",
            apply="mcp_core.memory.quantization.bnb:quantize_int8",
            saved_as="bitsandbytes checkpoint (safetensors)",
        ),
        Scheme(
            name="bnb-nf4",
            title="bitsandbytes 4-bit NF4",
            about="A quarter of bf16's weight memory; 16 levels placed for normally distributed weights.",
            needs="CPU (outputs a multiple of 32, inputs of 64), or NVIDIA 6.0 and newer.",
            bits=4,
            library="bitsandbytes",
            devices=("cpu", "cuda"),
            min_capability=(6, 0),
            lossless=False,
            deployable_as="vLLM --quantization bitsandbytes; transformers",
            apply="mcp_core.memory.quantization.bnb:quantize_nf4",
            double_quant=True,
            saved_as="bitsandbytes checkpoint (safetensors)",
        ),
        Scheme(
            name="bnb-fp4",
            title="bitsandbytes 4-bit FP4",
            about="As NF4 with floating-point levels; usually loses more than NF4.",
            needs="CPU (outputs a multiple of 32, inputs of 64), or NVIDIA 6.0 and newer.",
            bits=4,
            library="bitsandbytes",
            devices=("cpu", "cuda"),
            min_capability=(6, 0),
            lossless=False,
            deployable_as="transformers only",
            apply="mcp_core.memory.quantization.bnb:quantize_fp4",
            double_quant=True,
            saved_as="bitsandbytes checkpoint (safetensors)",
        ),
        Scheme(
            name="torchao-int8-weight-only",
            title="torchao int8 weight-only",
            about="Half of bf16's weight memory, one scale an output row; weights are expanded at each use, "
            "on CUDA in kernels of our own.",
            needs="Any device.",
            bits=8,
            library="torchao",
            devices=("cpu", "cuda"),
            lossless=False,
            deployable_as="vLLM (torchao checkpoint); transformers",
            apply="mcp_core.memory.quantization.torchao_int8:quantize_weight_only",
            saved_as="torchao checkpoint (safetensors)",
        ),
        Scheme(
            name="torchao-int8-dynamic",
            title="torchao int8 dynamic (W8A8)",
            about="Half of bf16's weight memory; activations become int8 too. Helps prefill, slows eager decode.",
            needs="CPU, or NVIDIA 7.5 and newer (inputs and outputs a multiple of 8).",
            bits=8,
            library="torchao",
            devices=("cpu", "cuda"),
            min_capability=(7, 5),
            lossless=False,
            deployable_as="vLLM (torchao checkpoint); transformers",
            apply="mcp_core.memory.quantization.torchao_int8:quantize_dynamic",
            saved_as="torchao checkpoint (safetensors)",
        ),
        Scheme(
            name="torchao-int8-static",
            title="torchao int8 static (W8A8)",
            about="One activation scale a layer, found on a text. Outlier channels use up its range: large loss.",
            needs="As int8 dynamic; and memory for the dense model while loading.",
            bits=8,
            library="torchao",
            devices=("cpu", "cuda"),
            min_capability=(7, 5),
            lossless=False,
            deployable_as="vLLM, SGLang (compressed-tensors checkpoint); transformers",
            convert="mcp_core.memory.quantization.torchao_static:pack_static",
            unsaved_because="transformers' torchao configuration has no place for a scale of each layer; "
            "compressed-tensors has.",
        ),
        Scheme(
            name="torchao-int8-static-smoothquant",
            title="torchao int8 static, SmoothQuant",
            about="As static, after outliers were moved into the weights: usually a tenth of its loss.",
            needs="As int8 static; alpha is given or searched.",
            bits=8,
            library="torchao",
            devices=("cpu", "cuda"),
            min_capability=(7, 5),
            lossless=False,
            deployable_as="transformers only; for vLLM and SGLang W8A8 by quantize --format llmcompressor",
            convert="mcp_core.memory.quantization.torchao_static:pack_smoothquant",
            unsaved_because="transformers' torchao configuration has no place for a scale of each layer.",
        ),
        Scheme(
            name="torchao-int4-weight-only",
            title="torchao int4 weight-only",
            about="A quarter of bf16's weight memory, a scale and zero point a group. The fastest decode on a CPU.",
            needs="bf16. CPU: outputs a multiple of 16. NVIDIA 8.0 and newer. Inputs a multiple of the group size.",
            bits=4,
            library="torchao",
            devices=("cpu", "cuda"),
            dtypes=("bf16",),
            min_capability=(8, 0),
            lossless=False,
            deployable_as="vLLM (torchao checkpoint of a GPU, or quantize --format llmcompressor); transformers",
            apply="mcp_core.memory.quantization.torchao_int4:quantize_weight_only",
            saved_as="torchao checkpoint (safetensors), on a GPU",
            unsaved_because="torchao cannot write its CPU layout of int4 to safetensors; on a GPU it can.",
        ),
        Scheme(
            name="torchao-fp8-weight-only",
            title="torchao fp8 weight-only",
            about="Half of bf16's weight memory in 8-bit floats; expanded at each use, very slow on a CPU.",
            needs="Any device.",
            bits=8,
            library="torchao",
            devices=("cpu", "cuda"),
            lossless=False,
            deployable_as="vLLM (torchao checkpoint); transformers",
            apply="mcp_core.memory.quantization.torchao_fp8:quantize_weight_only",
            saved_as="torchao checkpoint (safetensors)",
        ),
        Scheme(
            name="torchao-fp8-dynamic",
            title="torchao fp8 dynamic (W8A8, per row)",
            about="Half of bf16's weight memory, and fp8 tensor cores: helps prefill and batches, loses little.",
            needs="bf16 on NVIDIA 8.9 and newer (L4, RTX 4090, H100); inputs and outputs a multiple of 16.",
            bits=8,
            library="torchao",
            devices=("cuda",),
            dtypes=("bf16",),
            min_capability=(8, 9),
            lossless=False,
            deployable_as="vLLM (torchao checkpoint, or dense with --quantization fp8); transformers",
            apply="mcp_core.memory.quantization.torchao_fp8:quantize_dynamic",
            saved_as="torchao checkpoint (safetensors)",
        ),
        Scheme(
            name="classic-dynamic",
            title="Classic dynamic (CPU)",
            about="torch's old quantize_dynamic: int8, one activation scale a call. Fast, and loses most of all.",
            needs="fp32 on a CPU.",
            bits=8,
            library=None,
            devices=("cpu",),
            dtypes=("fp32",),
            lossless=False,
            deployable_as="transformers only",
            convert="mcp_core.memory.quantization.classic:quantize_dynamic",
            unsaved_because="its weights are opaque objects that only pickle can write, which MCP never does.",
        ),
        Scheme(
            name="gguf",
            title="GGUF, as the file has it",
            about="The GGUF's own packed weights (Q4_1, Q8_0, ...) through llama.cpp's kernels, nothing expanded.",
            needs="Engine llama.cpp, and the bundled model or a .gguf file.",
            bits=0,  # the file's types say
            library=None,
            devices=("cpu",),
            lossless=False,
            deployable_as="llama.cpp: this file as it is",
            unsaved_because="the GGUF is such a file already.",
            engine="llama.cpp",
        ),
    )
}


def group_size_of(options: Quantization) -> int:
    """Weights of int4 that share a scale, also where the Recipe leaves it to the scheme."""
    return options.group_size or _INT4_GROUP_SIZE


def reason_to_keep_dense(options: Quantization, rows: int, columns: int, device_kind: str) -> str:
    """Why this scheme cannot pack a matrix of ``rows`` outputs and ``columns`` inputs; empty where it can."""
    for number, what, divisor, owner in _divisibility(options, rows, columns, device_kind):
        if number % divisor:
            return f"{number} {what} are not a multiple of {divisor} ({owner})"
    return ""


def _divisibility(
    options: Quantization, rows: int, columns: int, device_kind: str
) -> tuple[tuple[int, str, int, str], ...]:
    """(number, what it counts, what must divide it, whose need that is) for each need of the scheme."""
    outputs, inputs = (rows, "outputs"), (columns, "inputs")
    match options.scheme, device_kind:
        case "torchao-int4-weight-only", "cpu":
            return (*inputs, group_size_of(options), "the group size"), (*outputs, 16, "the CPU kernel")
        case "torchao-int4-weight-only", _:
            return ((*inputs, group_size_of(options), "the group size"),)
        case (("bnb-nf4" | "bnb-fp4"), "cpu"):
            # With AVX512-BF16 bitsandbytes lays weights out anew at their first use, and stops at other shapes.
            return (*inputs, 64, "the CPU kernel"), (*outputs, 32, "the CPU kernel")
        case (("torchao-int8-dynamic" | "torchao-int8-static" | "torchao-int8-static-smoothquant"), "cuda"):
            # Other shapes are computed on the host, silently.
            return (*inputs, 8, "the int8 kernel"), (*outputs, 8, "the int8 kernel")
        case "torchao-fp8-dynamic", _:
            return (*inputs, 16, "the fp8 kernel"), (*outputs, 16, "the fp8 kernel")
    return ()
