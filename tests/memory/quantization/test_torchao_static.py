from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))
from tiny_llama import CHAT_TEMPLATE, byte_tokenizer

from mcp_core import texts
from mcp_core.memory import quantization
from mcp_core.memory.activation_ranges import InputRange
from mcp_core.memory.quantization.conversion import Conversion
from mcp_core.memory.quantization.torchao_static import int8_weight
from mcp_core.memory.storage import weights_bytes
from mcp_core.models.text_codec import TextCodec
from mcp_core.recipe import Recipe

CODEC = TextCodec(byte_tokenizer().backend_tokenizer, CHAT_TEMPLATE, {}, frozenset(), frozenset())
IDS = torch.tensor([list(range(60, 92))])


@pytest.fixture
def llama(llama: LlamaForCausalLM) -> LlamaForCausalLM:
    torch.manual_seed(0)
    llama.requires_grad_(requires_grad=False)
    for parameter in llama.parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=0.2)
    return llama


def conversion(scheme: str, **options: object) -> Conversion:
    changes = {f"quantization.{name}": value for name, value in ({"scheme": scheme} | options).items()}
    text = texts.add("short.txt", b"A short text, and its words. " * 20)
    wanted = {"text": text.sha256, "samples": 8, "tokens": 32}
    recipe = Recipe().replace(changes | {"quantization.calibration": wanted, "model.sha256": "0" * 64})
    return Conversion(recipe, torch.float32, torch.device("cpu"), ("lm_head",), CODEC, lambda part, text: None)


def layer_and_range(outlier: float = 1.0) -> tuple[nn.Linear, torch.Tensor, InputRange]:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(64, 32).requires_grad_(requires_grad=False), torch.randn(1, 50, 64)
    inputs[..., 5] *= outlier
    return layer, inputs, InputRange(inputs.abs().amax((0, 1)), 3, 50)


def error(layer: nn.Linear, inputs: torch.Tensor, weight: torch.Tensor) -> float:
    exact = layer(inputs)
    return float((nn.functional.linear(inputs, weight, layer.bias) - exact).norm() / exact.norm())


def test_the_scale_is_absmax_over_127() -> None:
    layer, inputs, seen = layer_and_range()
    packed = int8_weight(layer, seen, None)
    assert packed.act_quant_scale.item() == pytest.approx(inputs.abs().max().item() / 127, rel=1e-6)
    assert packed.act_quant_scale.shape == (1, 1, 1)  # as many dimensions as the inputs have
    assert packed.act_pre_scale is None
    assert int8_weight(layer, replace(seen, dimensions=2), None).act_quant_scale.shape == (1, 1)


def test_int8_computes_the_product_within_its_steps() -> None:
    layer, inputs, seen = layer_and_range()
    assert 0 < error(layer, inputs, int8_weight(layer, seen, None)) < 0.02


def test_smoothed_inputs_times_smoothed_weight_is_the_product() -> None:
    layer, inputs, seen = layer_and_range(outlier=100.0)
    packed = int8_weight(layer, seen, 0.5)
    dense = packed.dequantize(torch.float32)
    # Only the weight's own rounding is left: half a step of each row.
    assert error(layer, inputs, dense * packed.act_pre_scale) < 0.02
    scaled = (seen.channels * packed.act_pre_scale).max().item()
    assert packed.act_quant_scale.item() == pytest.approx(scaled / 127, rel=1e-6)


def test_smoothing_saves_what_an_outlier_costs() -> None:
    layer, inputs, seen = layer_and_range(outlier=100.0)
    layer.weight.data[:, 5] *= 0.01  # the outlier matters no more than the rest
    plain, smooth = (error(layer, inputs, int8_weight(layer, seen, alpha)) for alpha in (None, 0.5))
    assert plain > 5 * smooth


def test_bf16_stays_bf16() -> None:
    layer, inputs, seen = layer_and_range()
    packed = int8_weight(layer.bfloat16(), seen, 0.5)
    assert packed.dtype == torch.bfloat16
    assert nn.functional.linear(inputs.bfloat16(), packed, layer.bias).dtype == torch.bfloat16


def test_a_layer_whose_inputs_were_all_zero_computes() -> None:
    layer, inputs, _ = layer_and_range()
    for alpha in (None, 0.5):
        packed = int8_weight(layer, InputRange(torch.zeros(64), 3, 1), alpha)
        assert torch.isfinite(nn.functional.linear(inputs, packed, layer.bias)).all()


def test_static_packs_all_but_the_output_layer(llama: LlamaForCausalLM) -> None:
    dense, before = llama(IDS).logits, weights_bytes(llama)
    told = quantization.convert(llama, conversion("torchao-int8-static"))
    assert told is not None
    assert (told.alpha, told.alpha_search, told.samples, told.tokens) == (None, (), 8, 32)
    assert len(quantization.quantized_modules(llama)) == 14
    assert quantization.dense_matrices(llama) == ("lm_head",)
    assert weights_bytes(llama) < 0.55 * before  # embedding and output layer are a third
    assert float((llama(IDS).logits - dense).norm() / dense.norm()) < 0.25


def test_smoothquant_searches_and_keeps_what_it_found(llama: LlamaForCausalLM) -> None:
    told = quantization.convert(llama, conversion("torchao-int8-static-smoothquant"))
    assert told is not None
    assert [each.alpha for each in told.alpha_search] == [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert told.alpha == min(told.alpha_search, key=lambda each: each.kl).alpha
    assert llama.model.layers[0].mlp.up_proj.weight.act_pre_scale is not None


def test_a_second_load_calls_no_forward(llama: LlamaForCausalLM) -> None:
    other = copy.deepcopy(llama)
    first = quantization.convert(llama, conversion("torchao-int8-static-smoothquant"))
    other.register_forward_pre_hook(lambda *_: pytest.fail("the forward was called"))
    again = quantization.convert(other, conversion("torchao-int8-static-smoothquant"))
    assert first is not None
    assert again is not None
    assert again.reused
    assert (again.alpha, again.alpha_search) == (first.alpha, first.alpha_search)


def test_a_given_alpha_is_used_without_a_search(llama: LlamaForCausalLM) -> None:
    told = quantization.convert(llama, conversion("torchao-int8-static-smoothquant", alpha=0.25))
    assert told is not None
    assert (told.alpha, told.alpha_search) == (0.25, ())


def test_layers_to_keep_dense_stay_dense(llama: LlamaForCausalLM) -> None:
    kept = replace(conversion("torchao-int8-static"), keep_dense=("lm_head", "model.layers.0.mlp.down_proj"))
    quantization.convert(llama, kept)
    assert set(quantization.dense_matrices(llama)) == set(kept.keep_dense)
