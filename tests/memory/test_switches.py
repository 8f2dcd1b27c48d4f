from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from mcp_core.inference.kv_cache import cache_factory, extend
from mcp_core.memory.switches import apply_switches, switches_in_force, switches_on
from mcp_core.recipe import Switches

CPU = torch.device("cpu")


def test_they_hold_inside_and_are_put_back() -> None:
    asked = Switches(tf32=True, autocast="bf16", cudnn_benchmark=True)
    before = switches_in_force(CPU)
    with switches_on(asked, CPU):
        assert switches_in_force(CPU) == ("tf32", "autocast bf16", "cudnn.benchmark")
    assert switches_in_force(CPU) == before == ()


def test_they_are_put_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), switches_on(Switches(tf32=True, cudnn_benchmark=True), CPU):
        _ = 1 / 0
    assert switches_in_force(CPU) == ()


def test_autocast_computes_products_in_the_other_type_and_keeps_the_weights(llama: LlamaForCausalLM) -> None:
    ids = torch.randint(3, 300, (1, 40))
    plain = llama(ids).logits
    types = []
    llama.model.layers[0].mlp.up_proj.register_forward_hook(lambda _, __, out: types.append(out.dtype))
    assert apply_switches(llama, Switches(autocast="bf16"), CPU) == ("autocast bf16",)
    changed = llama(ids).logits
    assert types == [torch.bfloat16]
    assert llama.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    assert not torch.equal(changed.float(), plain)
    torch.testing.assert_close(changed.float(), plain, rtol=0.05, atol=0.05)


def test_without_switches_the_model_is_left_alone(llama: LlamaForCausalLM) -> None:
    forward = llama.forward
    assert apply_switches(llama, Switches(), CPU) == ()
    assert llama.forward == forward


def test_two_models_of_a_process_do_not_share_them(llama: LlamaForCausalLM) -> None:
    seen = {}
    other = LlamaForCausalLM(llama.config)
    apply_switches(llama, Switches(tf32=True), CPU)
    for name, model in (("with", llama), ("without", other)):
        model.model.norm.register_forward_hook(lambda *_, name=name: seen.update({name: switches_in_force(CPU)}))
        model(torch.tensor([[5, 6, 7]]))
    assert seen == {"with": ("tf32",), "without": ()}


@pytest.mark.parametrize("kind", ["dynamic", "sliding", "off"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_autocast_goes_with_every_cache(llama: LlamaForCausalLM, kind: str, dtype: str) -> None:
    llama.eval().requires_grad_(requires_grad=False)
    apply_switches(llama, Switches(autocast=dtype), CPU)
    ids = torch.randint(3, 300, (1, 130), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        cache = cache_factory(kind, llama.config, 256)()
        logits = torch.cat([extend(llama, ids[:, at : at + 65], cache) for at in (0, 65)], dim=1)
        exact = extend(llama, ids, DynamicCache(config=llama.config))
    assert torch.isfinite(logits).all()
    assert (logits.argmax(-1) == exact.argmax(-1)).float().mean() > 0.8
