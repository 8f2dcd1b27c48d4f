from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from mcp_core.memory.activation_ranges import InputRange, merged, watched


def seen(*channels: float, tokens: int = 1) -> InputRange:
    return InputRange(torch.tensor(channels), 3, tokens)


def test_a_known_input_gives_its_known_absmax(llama: LlamaForCausalLM) -> None:
    layer = llama.model.layers[0].mlp.down_proj
    first = torch.zeros(1, 2, 128)
    first[0, 0, 3], first[0, 1, 5] = -7.0, 2.0
    second = torch.full((1, 4, 128), 0.5)
    with watched(llama) as ranges:
        layer(first)
        layer(second)
    expected = torch.full((128,), 0.5)
    expected[3], expected[5] = 7.0, 2.0
    (name,) = ranges
    assert name == "model.layers.0.mlp.down_proj"
    assert torch.equal(ranges[name].channels, expected)
    assert (ranges[name].dimensions, ranges[name].tokens, ranges[name].largest) == (3, 6, 7.0)
    assert ranges[name].outlier_ratio == 14.0


def test_every_linear_layer_but_the_output_is_watched(llama: LlamaForCausalLM) -> None:
    with watched(llama) as ranges:
        llama(torch.tensor([[1, 2, 3]]))
    assert len(ranges) == 14
    assert "lm_head" not in ranges
    assert {each.tokens for each in ranges.values()} == {3}


def test_nothing_is_watched_afterwards_nor_after_an_error(llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="stop"), watched(llama):
        raise ValueError("stop")
    assert not any(module._forward_pre_hooks for module in llama.modules())


def test_bf16_inputs_lose_nothing(llama: LlamaForCausalLM) -> None:
    llama = llama.bfloat16()
    with watched(llama) as ranges:
        llama.model.layers[0].mlp.up_proj(torch.full((1, 1, 64), -3.0, dtype=torch.bfloat16))
    assert ranges["model.layers.0.mlp.up_proj"].channels.dtype == torch.float32
    assert ranges["model.layers.0.mlp.up_proj"].largest == 3.0


def test_an_expert_without_tokens_has_no_range(llama: LlamaForCausalLM) -> None:
    with watched(llama) as ranges:
        llama.model.layers[0].mlp.up_proj(torch.zeros(0, 64))
    assert ranges == {}


def test_silent_channels_have_no_outlier_ratio() -> None:
    assert seen(0.0, 0.0, 5.0).outlier_ratio is None


def test_merged_ranges_are_those_over_both() -> None:
    both = merged({"a": seen(1, 5, tokens=2), "b": seen(1, 1)}, {"a": seen(3, 4, tokens=5), "c": seen(2, 2)})
    assert torch.equal(both["a"].channels, torch.tensor([3.0, 5.0]))
    assert both["a"].tokens == 7
    assert set(both) == {"a", "b", "c"}
