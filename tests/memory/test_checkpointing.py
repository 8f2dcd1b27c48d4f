from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from mcp_core.memory.checkpointing import checkpointing, trainable, training_step

IDS = torch.randint(3, 300, (2, 48), generator=torch.Generator().manual_seed(0))


def kept_bytes(llama: LlamaForCausalLM, *, on: bool) -> int:
    """What one forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {each.untyped_storage().data_ptr() for each in llama.parameters()}
    with trainable(llama), checkpointing(llama, on=on):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = llama(IDS, labels=IDS, use_cache=False).loss
        held = sum(size for pointer, size in kept.items() if pointer not in weights)
        loss.backward()
    return held


def test_checkpointing_keeps_less_for_the_backward_pass(llama: LlamaForCausalLM) -> None:
    assert kept_bytes(llama, on=True) < 0.7 * kept_bytes(llama, on=False)


def test_loss_and_gradients_are_the_same(llama: LlamaForCausalLM) -> None:
    gradients = {}
    for on in (False, True):
        with trainable(llama), checkpointing(llama, on=on):
            loss = llama(IDS, labels=IDS, use_cache=False).loss
            loss.backward()
            gradients[on] = [each.grad.clone() for each in llama.parameters()]
    for without, with_it in zip(gradients[False], gradients[True], strict=True):
        torch.testing.assert_close(with_it, without)


@pytest.mark.parametrize("on", [False, True])
def test_a_training_step_leaves_the_model_as_it_was(llama: LlamaForCausalLM, on: bool) -> None:
    llama.eval().requires_grad_(requires_grad=False)
    before = {name: each.clone() for name, each in llama.state_dict().items()}
    with trainable(llama), checkpointing(llama, on=on):
        loss = training_step(llama, IDS)
    assert loss == pytest.approx(float(llama(IDS, labels=IDS).loss), rel=1e-5)
    assert not llama.training
    assert not any(getattr(module, "gradient_checkpointing", False) for module in llama.modules())
    assert all(each.grad is None and not each.requires_grad for each in llama.parameters())
    assert all(torch.equal(before[name], each) for name, each in llama.state_dict().items())
