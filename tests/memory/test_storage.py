from __future__ import annotations

import ctypes
import gc
import platform
import warnings

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import LlamaForCausalLM

from mcp_core.memory.storage import opaque_bytes, weights_bytes

ROWS, COLUMNS = 128, 64  # one linear layer of 8,192 weights
WEIGHTS = ROWS * COLUMNS


def four_bit(*, double_quant: bool) -> nn.Module:
    layer = bnb.nn.Linear4bit(
        COLUMNS, ROWS, bias=False, quant_type="nf4", compute_dtype=torch.float32, compress_statistics=double_quant
    )
    return layer.to("cpu")


def eight_bit() -> nn.Module:
    return bnb.nn.Linear8bitLt(COLUMNS, ROWS, bias=False, has_fp16_weights=False).to("cpu")


def test_dense_weights_and_buffers_count() -> None:
    layer = nn.Linear(COLUMNS, ROWS, dtype=torch.bfloat16)
    layer.register_buffer("table", torch.zeros(10, dtype=torch.float32))
    assert weights_bytes(layer) == (WEIGHTS + ROWS) * 2 + 40


def test_tied_weights_and_views_count_once() -> None:
    embedding, head = nn.Embedding(ROWS, COLUMNS), nn.Linear(COLUMNS, ROWS, bias=False)
    head.weight = embedding.weight
    half = nn.Linear(COLUMNS, ROWS // 2, bias=False)
    half.weight = nn.Parameter(embedding.weight[: ROWS // 2])
    assert weights_bytes(nn.ModuleList([embedding, head, half])) == WEIGHTS * 4


def test_nf4_is_half_a_byte_a_weight_a_scale_per_64_and_the_levels() -> None:
    assert weights_bytes(four_bit(double_quant=False)) == WEIGHTS // 2 + WEIGHTS // 64 * 4 + 16 * 4


def test_double_quantization_counts_its_nested_state() -> None:
    scales = WEIGHTS // 64  # one byte each, in one block of 256 with a scale, an offset and 256 levels
    assert weights_bytes(four_bit(double_quant=True)) == WEIGHTS // 2 + scales + 16 * 4 + 4 + 4 + 256 * 4


def test_int8_is_a_byte_a_weight_and_a_scale_a_row() -> None:
    assert weights_bytes(eight_bit()) == WEIGHTS + ROWS * 4


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_int8_scales_still_count_after_the_first_use() -> None:
    layer = eight_bit()
    before = weights_bytes(layer)
    layer(torch.zeros(1, COLUMNS))
    assert weights_bytes(layer) == before


def test_torchao_int8_is_a_byte_a_weight_a_scale_and_a_zero_point_a_row() -> None:
    layer = nn.Sequential(nn.Linear(COLUMNS, ROWS, bias=False, dtype=torch.bfloat16))
    quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False))
    assert weights_bytes(layer) == WEIGHTS + ROWS * 4 + ROWS  # fp32 scale, int8 zero point


def test_a_whole_model_is_its_parameters_and_two_rotary_tables(llama: LlamaForCausalLM) -> None:
    parameters = sum(each.numel() for each in llama.parameters())
    assert weights_bytes(llama) == parameters * 4 + 2 * 8 * 4  # inv_freq and its original: head_dim / 2 each


class _Mallinfo(ctypes.Structure):
    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "rest", "top")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def allocated_bytes() -> int:
    """What this process holds of the C library's allocator, mapped blocks included."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallinfo2 is glibc's")
@pytest.mark.parametrize(("rows", "columns"), [(1536, 576), (576, 1536), (1008, 4096)])
def test_a_classic_layer_takes_from_the_allocator_what_is_said(rows: int, columns: int) -> None:
    gc.collect()
    dense = nn.Linear(columns, rows, bias=False)
    packed(dense)
    before = allocated_bytes()
    layers = [packed(dense) for _ in range(8)]
    each = (allocated_bytes() - before) / len(layers)
    assert opaque_bytes(layers[0]) == pytest.approx(each, rel=0.01)
    assert weights_bytes(layers[0]) == opaque_bytes(layers[0])
    assert rows * columns <= opaque_bytes(layers[0])


def packed(dense: nn.Linear) -> nn.Module:
    dense.qconfig = torch.ao.quantization.default_dynamic_qconfig
    with warnings.catch_warnings(action="ignore"):
        return torch.ao.nn.quantized.dynamic.Linear.from_float(dense)


def test_the_bias_of_a_classic_layer_counts() -> None:
    with_bias, without = (packed(nn.Linear(COLUMNS, ROWS, bias=bias)) for bias in (True, False))
    assert weights_bytes(with_bias) - weights_bytes(without) == ROWS * 4


def test_nf4_still_counts_after_its_first_use_on_a_cpu() -> None:
    """Where the CPU has AVX512-BF16 the scales are laid out anew, as 16-bit numbers and no longer nested."""
    for double_quant in (False, True):
        layer = four_bit(double_quant=double_quant).eval()
        layer(torch.zeros(1, COLUMNS))
        assert WEIGHTS // 2 < weights_bytes(layer) <= WEIGHTS // 2 + WEIGHTS // 64 * 4 + 2000
