from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import LlamaForCausalLM

from mcp_core.memory.storage import weights_bytes

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
