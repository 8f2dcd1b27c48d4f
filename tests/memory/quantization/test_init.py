from __future__ import annotations

import pytest
import torch
from transformers import BitsAndBytesConfig, LlamaForCausalLM, TorchAoConfig

from mcp_core.errors import RecipeError
from mcp_core.memory import quantization
from mcp_core.recipe import Quantization
from mcp_core.schemes import SCHEMES

CPU = torch.device("cpu")
ALL_LINEAR = 14  # 7 in each of 2 layers


def test_every_row_of_the_table_can_be_configured() -> None:
    for name in (name for name, scheme in SCHEMES.items() if scheme.engine != "llama.cpp"):
        config = quantization.configure(Quantization(scheme=name), torch.bfloat16, CPU, ("lm_head",))
        assert (config is None) == (name == "none" or SCHEMES[name].convert is not None)


def test_nf4_options_reach_bitsandbytes() -> None:
    options = Quantization(scheme="bnb-nf4", double_quant=True)
    config = quantization.configure(options, torch.float16, CPU, ("lm_head", "a.b"))
    assert isinstance(config, BitsAndBytesConfig)
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.float16
    assert config.llm_int8_skip_modules == ["lm_head", "a.b"]


def test_torchao_leaves_inductor_alone() -> None:
    config = quantization.configure(
        Quantization(scheme="torchao-int8-weight-only"), torch.bfloat16, CPU, ("lm_head",)
    )
    assert isinstance(config, TorchAoConfig)
    assert config.quant_type.set_inductor_config is False
    assert config.modules_to_not_convert == ["lm_head"]


def test_the_output_layer_stays_dense(llama: LlamaForCausalLM) -> None:
    kept = quantization.layers_to_keep_dense(llama, Quantization(scheme="bnb-nf4"), CPU)
    assert kept == {"lm_head": "output layer"}


def test_patterns_name_modules(llama: LlamaForCausalLM) -> None:
    options = Quantization(scheme="bnb-nf4", skip=("model.layers.0.mlp.*", "*.o_proj"))
    kept = quantization.layers_to_keep_dense(llama, options, CPU)
    assert tuple(kept) == (
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.o_proj",
        "lm_head",
    )


def test_a_pattern_that_names_nothing_is_refused(llama: LlamaForCausalLM) -> None:
    with pytest.raises(RecipeError, match=r'quantization.skip: "\*.fc1" names no linear layer') as caught:
        quantization.layers_to_keep_dense(llama, Quantization(scheme="bnb-nf4", skip=("*.fc1",)), CPU)
    assert "model.layers.0.self_attn.q_proj" in caught.value.hint


def test_a_dense_model_has_nothing_packed(llama: LlamaForCausalLM) -> None:
    assert quantization.quantized_modules(llama) == ()
    assert len(quantization.dense_matrices(llama)) == ALL_LINEAR + 1


def test_a_scheme_that_packed_nothing_is_a_recipe_error(llama: LlamaForCausalLM) -> None:
    quantization.require_packed(llama, Quantization())
    with pytest.raises(RecipeError, match="bnb-nf4 packs no layer"):
        quantization.require_packed(llama, Quantization(scheme="bnb-nf4"))
