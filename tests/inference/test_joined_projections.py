"""Joined projections compute what they did apart, dense and packed, and weigh the same."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from mcp_core.inference import joined_projections
from mcp_core.inference.joined_projections import join_projections


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(3, 43)[None]).logits


def bytes_of(model: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in model.parameters())


def test_a_dense_model_computes_the_same_with_three_products_fewer_a_layer(model):
    own = copy.deepcopy(model)
    assert join_projections(own) == 3 * 3
    torch.testing.assert_close(logits_of(own), logits_of(model), atol=1e-5, rtol=1e-5)
    assert bytes_of(own) == bytes_of(model)
    assert join_projections(own) == 0
    torch.testing.assert_close(logits_of(own), logits_of(model), atol=1e-5, rtol=1e-5)


def test_biases_are_joined_too_and_a_lone_one_keeps_its_group_apart(model):
    own = copy.deepcopy(model)
    for layer in own.model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            part.bias = nn.Parameter(torch.randn(part.out_features))
        layer.mlp.gate_proj.bias = nn.Parameter(torch.randn(layer.mlp.gate_proj.out_features))
    apart = logits_of(own)
    assert join_projections(own) == 3 * 2
    torch.testing.assert_close(logits_of(own), apart, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_packed_rows_are_joined_as_they_are(model, config):
    from torchao import quantization

    own = copy.deepcopy(model).to(torch.bfloat16)
    make = getattr(quantization, config)
    quantization.quantize_(own.model, make(set_inductor_config=False))
    apart = logits_of(own)
    assert join_projections(own) == 3 * 3
    torch.testing.assert_close(logits_of(own), apart, atol=0.05, rtol=0.05)
    assert type(own.model.layers[0].mlp.gate_proj.joined.weight).__name__ == "Int8Tensor"


def test_layers_of_another_kind_stay_apart(model):
    class Other(nn.Linear):
        """As bitsandbytes' are."""

    own = copy.deepcopy(model)
    for layer in own.model.layers:
        layer.self_attn.k_proj.__class__ = Other
    assert join_projections(own) == 3
    torch.testing.assert_close(logits_of(own), logits_of(model), atol=1e-5, rtol=1e-5)


def test_parts_are_fetched_in_any_order_and_never_for_another_input(model):
    own, hidden = copy.deepcopy(model), torch.randn(1, 5, 64)
    join_projections(own)
    before, after = model.model.layers[0].self_attn, own.model.layers[0].self_attn
    for name in ("q_proj", "v_proj", "k_proj"):
        torch.testing.assert_close(getattr(after, name)(hidden), getattr(before, name)(hidden))
    after.q_proj(hidden)
    with pytest.raises(RuntimeError, match="one input"):
        after.k_proj(hidden.clone())


def test_no_part_outlives_the_joining_of_its_group(model, monkeypatch):
    """Else a model is in memory nearly twice for a while."""
    own = copy.deepcopy(model)
    kinds = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    parts = [weakref.ref(each.weight) for name, each in own.named_modules() if name.endswith(kinds)]
    alive: list[int] = []
    monkeypatch.setattr(
        joined_projections, "_give_back", lambda: alive.append(sum(part() is not None for part in parts))
    )
    join_projections(own)
    assert alive == [12, 10, 7, 5, 2, 0]
