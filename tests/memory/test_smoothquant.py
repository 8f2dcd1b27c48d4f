from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from mcp_core.memory.smoothquant import ALPHAS, AlphaJudge, best_alpha, search, smoothing_factors


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_changes_no_product(alpha: float) -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(32, 64, dtype=torch.float64), torch.randn(16, 64, dtype=torch.float64)
    inputs[:, 7] *= 100
    factors = smoothing_factors(inputs.abs().amax(0), weight.abs().amax(0), alpha)
    assert torch.allclose((inputs / factors) @ (weight * factors).T, inputs @ weight.T, rtol=1e-12, atol=1e-9)


def test_alpha_one_makes_all_channels_equal_and_zero_all_columns() -> None:
    inputs, weights = torch.tensor([100.0, 1.0, 4.0]), torch.tensor([2.0, 0.5, 1.0])
    assert torch.allclose(inputs / smoothing_factors(inputs, weights, 1.0), torch.ones(3))
    assert torch.allclose(weights * smoothing_factors(inputs, weights, 0.0), torch.ones(3))
    assert torch.allclose(smoothing_factors(inputs, weights, 0.5), (inputs / weights).sqrt())


def test_silent_channels_are_left_alone() -> None:
    factors = smoothing_factors(torch.tensor([0.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 1.0]), 0.5)
    assert factors[:2].tolist() == [1.0, 1.0]
    assert torch.isfinite(factors).all()


def test_the_search_finds_the_planted_best() -> None:
    heard: list[float] = []
    tried = search(lambda alpha: (alpha - 0.6) ** 2 + 0.01, ALPHAS, lambda part, _: heard.append(part))
    assert best_alpha(tried) == 0.6
    assert [each.alpha for each in tried] == list(ALPHAS)
    assert heard[-1] == 1.0


def judge_with(model: LlamaForCausalLM, weight: torch.Tensor | None) -> tuple[AlphaJudge, list[str]]:
    """Every layer computes with its own weight, but one layer with ``weight``."""
    asked: list[str] = []

    def quantize(layer: nn.Linear, name: str, alpha: float) -> torch.Tensor:
        asked.append(name)
        return weight if weight is not None and name.endswith("0.mlp.up_proj") else layer.weight

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    return AlphaJudge(model, names, [list(range(10, 30))], quantize), asked


def test_weights_that_did_not_change_cost_nothing(llama: LlamaForCausalLM) -> None:
    judge, asked = judge_with(llama, None)
    assert judge.loss(0.5) == pytest.approx(0.0, abs=1e-6)
    assert len(asked) == 14


def test_the_loss_is_the_divergence_from_the_dense_model(llama: LlamaForCausalLM) -> None:
    llama.requires_grad_(requires_grad=False)
    torch.manual_seed(0)
    for parameter in llama.parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=0.2)
    up = llama.model.layers[0].mlp.up_proj
    ids = torch.tensor([list(range(10, 30))])
    dense = llama(ids).logits.log_softmax(-1)
    judge, _ = judge_with(llama, torch.zeros_like(up.weight))
    found = judge.loss(0.5)
    up.weight.data.zero_()
    other = llama(ids).logits.log_softmax(-1)
    by_hand = (dense.exp() * (dense - other)).sum(-1).mean().item()
    assert by_hand > 0.01
    assert found == pytest.approx(by_hand, rel=1e-4)


def test_the_model_is_as_it_was_afterwards(llama: LlamaForCausalLM) -> None:
    before = dict(llama.named_modules())
    judge, _ = judge_with(llama, None)
    judge.loss(0.5)
    assert dict(llama.named_modules()) == before
