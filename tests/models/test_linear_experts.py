from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from mcp_core import hardware
from mcp_core.models import catalog, footprint, loader
from mcp_core.models.architecture import LINEAR_EXPERTS
from mcp_core.models.linear_experts import LinearExperts, with_linear_experts
from mcp_core.recipe import ModelRef, Quantization, Recipe

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 16,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}


def build(model_type: str, *, linear: bool) -> Any:
    config = AutoConfig.for_model(model_type, **SIZES)
    config._attn_implementation = "eager"
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return (with_linear_experts(model_class) if linear else model_class)(config).eval()


@pytest.mark.parametrize("model_type", sorted(LINEAR_EXPERTS))
def test_linear_experts_compute_what_fused_ones_do(model_type: str) -> None:
    torch.manual_seed(0)
    fused, linear = build(model_type, linear=False), build(model_type, linear=True)
    weights = dict(fused.state_dict())
    for name in [each for each in weights if each.endswith(".experts.gate_up_proj")]:
        for index, both in enumerate(torch.randn_like(weights.pop(name)) * 0.3):
            owner = name.removesuffix("gate_up_proj")
            weights[f"{owner}{index}.gate_proj.weight"], weights[f"{owner}{index}.up_proj.weight"] = both.chunk(2)
    for name in [each for each in weights if each.endswith(".experts.down_proj")]:
        for index, down in enumerate(torch.randn_like(weights.pop(name)) * 0.3):
            weights[f"{name.removesuffix('down_proj')}{index}.down_proj.weight"] = down
    linear.load_state_dict(weights, strict=True)
    for layer, experts in enumerate(each for each in linear.modules() if isinstance(each, LinearExperts)):
        stacked = fused.get_submodule(f"model.layers.{layer}.mlp.experts")
        gate_up = [torch.cat([each.gate_proj.weight, each.up_proj.weight]) for each in experts]
        stacked.gate_up_proj.data = torch.stack(gate_up).detach()
        stacked.down_proj.data = torch.stack([each.down_proj.weight for each in experts]).detach()
    ids = torch.randint(0, 300, (2, 9))
    with torch.inference_mode():
        assert torch.allclose(linear(ids).logits, fused(ids).logits, atol=1e-5)


def test_experts_that_no_token_chose_are_not_run() -> None:
    experts = next(each for each in build("qwen3_moe", linear=True).modules() if isinstance(each, LinearExperts))
    ran: list[int] = []
    for index, expert in enumerate(experts):
        expert.register_forward_hook(lambda *_, index=index: ran.append(index))
    experts(torch.randn(3, 32), torch.tensor([[0, 2], [2, 0], [2, 3]]), torch.rand(3, 2))
    assert ran == [0, 2, 3]


@pytest.mark.parametrize("model_type", sorted(LINEAR_EXPERTS))
def test_experts_of_a_checkpoint_are_packed(model_type: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Packed to 8 bit one by one: near the dense logits, and of the size that was predicted."""
    folder = shutil.copytree(tiny_llama, tmp_path / model_type)
    torch.manual_seed(0)
    model = build(model_type, linear=False).to(torch.bfloat16)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    ref = ModelRef(source="folder", id=str(folder))
    resolved, options = catalog.resolve(ref), Quantization(scheme="torchao-int8-weight-only")
    recipe = Recipe(model=ref, device="cpu", dtype="bf16", attention="eager", quantization=options)
    loaded = loader.load(resolved, recipe, lambda *_: None)
    assert loaded.effective.quantized_modules >= 2 * (4 + 4 * 3)
    assert not [name for name in loaded.effective.skipped_modules if "experts" in name]
    predicted = footprint.estimate(recipe, resolved, hardware.detect()).weights_bytes
    assert loaded.weights_bytes == pytest.approx(predicted, rel=0.005)
    ids = torch.randint(0, 300, (1, 9))
    with torch.inference_mode():
        dense, packed = model(ids).logits.float(), loaded.model(ids).logits.float()
    assert (packed - dense).norm() / dense.norm() < 0.2
