from __future__ import annotations

import pytest
import torch
from torch import nn

from mcp_core.models.random_weights import RandomTensor, random_tensors

CPU = torch.device("cpu")


def tensor(name: str = "layer.weight", shape: tuple[int, ...] = (512, 256), seed: int = 0) -> RandomTensor:
    return RandomTensor(name, shape, torch.float32, CPU, seed)


def test_the_same_seed_and_name_draw_the_same_values() -> None:
    assert torch.equal(tensor()[...], tensor()[...])


@pytest.mark.parametrize("other", [tensor(seed=1), tensor(name="another.weight")])
def test_another_seed_or_name_draws_others(other: RandomTensor) -> None:
    assert not torch.equal(tensor()[...], other[...])


def test_matrices_keep_the_size_of_what_passes_through() -> None:
    drawn = tensor()[...]
    assert drawn.mean().abs() < 1e-3
    assert drawn.std().item() == pytest.approx(1 / 16, rel=0.02)  # input width 256


def test_norms_are_ones_and_biases_zeros() -> None:
    assert torch.equal(tensor("norm.weight", (8,))[...], torch.ones(8))
    assert torch.equal(tensor("proj.bias", (8,))[...], torch.zeros(8))


def test_each_parameter_of_a_model_once_in_its_type() -> None:
    with torch.device("meta"):
        model = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
        model["b"].weight = model["a"].weight
    drawn = random_tensors(model, torch.bfloat16, CPU)
    assert set(drawn) == {"a.weight", "a.bias", "b.bias"}
    assert drawn["a.weight"][...].dtype == torch.bfloat16
    assert drawn["a.weight"].nbytes == 4 * 3 * 2
    assert drawn["a.weight"].get_dtype() == "BF16"
