from __future__ import annotations

import pytest

from mcp_core.errors import ModelNotFound, RecipeError
from mcp_core.models.shapes import SHAPES, architecture_of, config_of, spec_of
from mcp_core.recipe import ModelRef, ShapeSpec

# From the published checkpoints.
PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-8b": 8_190_735_360,
}
TINY = ShapeSpec(layers=2, hidden=16, intermediate=24, heads=4, kv_heads=2, vocab=300, context=64)


def named(name: str) -> ModelRef:
    return ModelRef(source="shape", id=name)


def custom(**changes: object) -> ModelRef:
    return ModelRef(source="shape", id="custom", shape=TINY.model_copy(update=changes))


def test_every_shape_has_a_published_count():
    assert set(SHAPES) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name):
    assert architecture_of(named(name)).parameters == PARAMETERS[name]


def test_keys_and_values_of_a_token():
    # 2 x 32 layers x 8 heads x 128: 128 KiB in bf16, as published for Llama-3.1-8B.
    assert architecture_of(named("llama-3.1-8b")).kv_elements_per_token * 2 == 128 * 1024


def test_tied_output_layer_is_counted_once():
    untied, tied = architecture_of(custom()), architecture_of(custom(tied=True))
    assert untied.parameters - tied.parameters == 300 * 16


def test_unknown_name_lists_the_known():
    with pytest.raises(ModelNotFound, match="llama-2-7b"):
        spec_of(named("llama-9"))


def test_llama_needs_hidden_divisible_by_heads():
    with pytest.raises(RecipeError, match="hidden 18"):
        spec_of(custom(hidden=18, head_dim=4))


@pytest.mark.parametrize("ref", [*map(named, PARAMETERS), custom(), custom(tied=True, head_dim=8)], ids=str)
def test_config_is_read_by_transformers(ref):
    from transformers import AutoConfig

    document = config_of(ref)
    config = AutoConfig.for_model(**document)
    for key, value in document.items():
        read = getattr(config, key)
        assert str(read).removeprefix("torch.") == value if key == "dtype" else read == value, key


def test_tensors_are_those_that_transformers_builds():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for ref in (custom(), custom(tied=True)):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_of(ref)))
        built = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        assert {tensor.name: tensor.shape for tensor in architecture_of(ref).tensors} == built


def test_qwen3_has_norms_on_heads():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    ref = named("qwen3-8b")
    config = AutoConfig.for_model(**config_of(ref) | {"num_hidden_layers": 1, "layer_types": None})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layer = {name: tuple(p.shape) for name, p in model.named_parameters() if ".layers.0." in name}
    assert layer == {t.name: t.shape for t in architecture_of(ref).tensors if ".layers.0." in t.name}
