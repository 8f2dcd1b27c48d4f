"""What a piece of work is for, by its name: operators of torch and its extensions, kernels of a GPU.

Tables of patterns, the first that matches counts. Names were read in traces of torch 2.13, bitsandbytes 0.49 and
torchao 0.17, and in the sources of vLLM's and FlashAttention's kernels. This file does not know what a trace is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from mcp_core.trace_summary import Part

__all__ = ["INHERITED", "kernel_part", "operator_part"]

# Whatever such an operator calls, and whatever kernels that launches, is for the same purpose.
INHERITED: frozenset[Part] = frozenset({"attention", "dequantization", "sampling", "kv", "communication"})

_DEQUANTIZATION = (
    r"dequant|gemv_4bit|gemm_4bit|matmul_?4bit|int4pack|int8pack|tinygemm|marlin|\bawq|gptq|unpack"
    r"|quantize_affine|choose_qparams|vector_?quant|vectorwise_quant|kquantize|bitunpack|hqq|per_token_quant"
)
_ATTENTION = r"scaled_dot_product|flash|fmha|mem_?eff\w*attention|attention|\b_attend\b|^_merge$|sdpa|splitkv"
_COMMUNICATION = r"nccl|gloo|all_?reduce|all_?gather|reduce_scatter|broadcast_coalesced|c10d"

_OPERATORS: tuple[tuple[Part, str], ...] = (
    ("communication", _COMMUNICATION),
    ("dequantization", _DEQUANTIZATION),
    ("attention", _ATTENTION),
    ("kv", r"index_copy|index_put|reshape_and_cache|aten::index$"),
    ("sampling", r"argmax|multinomial"),
    (
        "gemm",
        r"aten::(linear|matmul|mm|bmm|addmm|addbmm|baddbmm|addmv|mv|dot|_int_mm|_scaled_mm|einsum|_grouped_mm)$"
        r"|mkldnn.*(linear|matmul)|int8_linear_matmul|int8_scaled_mm|onednn::.*linear|_scaled_grouped_mm"
        r"|quantized::linear|cudnn_convolution|aten::_?convolution|wrapped_linear",
    ),
    ("copy", r"aten::(copy_|_to_copy|to|clone|contiguous|fill_|zero_|zeros|ones|full|pin_memory|_pin_memory)$"),
    (
        "elementwise",
        r"aten::(add|sub|mul|div|neg|pow|rsqrt|sqrt|mean|sum|silu|gelu|relu|sigmoid|tanh|exp|cos|sin|where|cat"
        r"|_softmax|softmax|log_softmax|layer_norm|native_layer_norm|rms_norm|_fused_rms_norm|embedding|index_select"
        r"|gather|clamp|maximum|minimum|eq|ne|gt|lt|ge|le|bitwise_\w+|logical_\w+|abs|masked_fill|arange|stack)_?$"
        r"|triton_|cpp_fused",
    ),
)

_KERNELS: tuple[tuple[Part, str], ...] = (
    ("communication", _COMMUNICATION),
    ("dequantization", _DEQUANTIZATION + r"|kdequant|kint8vector|int4mm"),
    ("attention", _ATTENTION),
    ("kv", r"^_keep$"),  # our own, started outside of any operator
)
# Asked only where the operator that launched a kernel does not tell what it is for.
_COMMON_KERNELS: tuple[tuple[Part, str], ...] = (
    ("gemm", r"gemm|gemv|cutlass|cublas|xmma|nvjet|wgmma|s\d+816|splitk|dot_kernel|_mm_"),
    ("kv", r"index_copy|index_put|reshape_and_cache|indexing_backward"),
    ("sampling", r"argmax|multinomial"),
    ("copy", r"memcpy|memset|copy_kernel|copy_device|fillfunctor"),
    (
        "elementwise",
        r"elementwise|reduce_kernel|norm|silu|gelu|softmax|rope|rotary|catarray|act_and_mul|triton_|embedding|gather",
    ),
)
# Types that weights and activations are packed in; a conversion from or to one is dequantization's.
_PACKED_TYPES = ("signed char", "unsigned char", "Float8", "Bits", "QInt8", "QUInt8")
_CONVERSIONS = frozenset({"aten::to", "aten::_to_copy", "aten::copy_"})
# A cache grows along its tokens; rotations and others join along the last dimension.
_TOKENS_DIMENSION = "-2"


def operator_part(name: str, types: Sequence[object] = (), values: Sequence[object] = ()) -> Part:
    """What an operator is for. ``types`` and ``values`` of its inputs are known where shapes were recorded."""
    if name in _CONVERSIONS and any(str(each).removeprefix("c10::").startswith(_PACKED_TYPES) for each in types):
        return "dequantization"
    if name == "aten::cat" and len(values) > 1:
        return "kv" if values[1] == _TOKENS_DIMENSION else "elementwise"
    return _first(name, _OPERATORS) or "other"


def kernel_part(name: str, launched_for: Part | None = None) -> Part:
    """What a kernel is for. ``launched_for`` is the part of the operators or the section that it was launched in,
    None where that tells nothing: a recorded step is launched as a whole."""
    if launched_for == "sampling":
        return "sampling"
    return _first(name, _KERNELS) or (launched_for if launched_for in INHERITED else None) or _common(name)


def _common(name: str) -> Part:
    return _first(name, _COMMON_KERNELS) or "other"


@functools.lru_cache(maxsize=20_000)
def _first(name: str, table: tuple[tuple[Part, str], ...]) -> Part | None:
    lowered = name.lower()
    return next((part for part, pattern in table if re.search(pattern, lowered)), None)
