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
    "llama-3.1-70b": 70_553_706_496,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "gpt-oss-20b": 20_914_757_184,
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


def built_tensors(config):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("ref", [custom(), custom(tied=True)], ids=["untied", "tied"])
def test_tensors_are_those_that_transformers_builds(ref):
    assert {each.name: each.shape for each in architecture_of(ref).tensors} == built_tensors(config_of(ref))


@pytest.mark.parametrize("name", PARAMETERS)
def test_tensors_of_each_family_are_those_that_transformers_builds(name, monkeypatch):
    """Its family at a size of two layers: names, shapes and count, no more and no fewer."""
    small = TINY.model_copy(update={"head_dim": SHAPES[name].head_dim and 8})
    monkeypatch.setitem(SHAPES, name, small)
    tensors = {each.name: each.shape for each in architecture_of(named(name)).tensors}
    assert tensors == built_tensors(config_of(named(name)))


def test_half_of_gpt_oss_layers_keep_a_window():
    architecture = architecture_of(named("gpt-oss-20b"))
    a_layer = 2 * 8 * 64
    assert architecture.kv_elements(1000) == 12 * a_layer * 1000 + 12 * a_layer * 128
    assert architecture.kv_elements(100) == 24 * a_layer * 100 == 100 * architecture.kv_elements_per_token


def test_experts_at_work():
    active = {name: architecture_of(named(name)).active_experts for name in SHAPES}
    assert {name: count for name, count in active.items() if count} == {"qwen3-30b-a3b": 8, "gpt-oss-20b": 4}
