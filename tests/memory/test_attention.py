from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Gemma2ForCausalLM, LlamaForCausalLM

from mcp_core.errors import RecipeError
from mcp_core.memory.attention import backend_in, backend_words, require_attention, running_attention
from mcp_core.recipe import Attention


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_what_runs_is_read_back(llama: LlamaForCausalLM, attention: Attention) -> None:
    llama.set_attn_implementation(attention)
    assert running_attention(llama) == attention


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"])
def test_llama_has_every_implementation(attention: Attention) -> None:
    require_attention(LlamaForCausalLM, attention)


def test_an_implementation_that_a_class_lacks_is_a_recipe_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gemma2ForCausalLM, "_supports_sdpa", False)
    require_attention(Gemma2ForCausalLM, "eager")
    with pytest.raises(RecipeError, match="attention: Gemma2ForCausalLM has no sdpa") as caught:
        require_attention(Gemma2ForCausalLM, "sdpa")
    assert "eager" in caught.value.hint
    assert "sdpa" not in caught.value.hint


IDS = torch.randint(3, 300, (1, 60), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("forced", "name"), [(SDPBackend.MATH, "math"), (SDPBackend.FLASH_ATTENTION, "flash")])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_backend_of_sdpa_is_read_from_what_ran(
    llama: LlamaForCausalLM, forced: SDPBackend, name: str, mode: type[torch.no_grad]
) -> None:
    def work() -> torch.Tensor:
        with mode(), sdpa_kernel(forced):
            return llama(IDS).logits

    logits, backend = backend_in(work, llama)
    assert backend == name
    assert torch.equal(logits, work())


def test_eager_has_no_backend(llama: LlamaForCausalLM) -> None:
    llama.set_attn_implementation("eager")
    assert backend_in(lambda: llama(IDS), llama)[1] is None


def test_backends_in_words() -> None:
    assert backend_words("flash", "flash") == "flash"
    assert backend_words("flash", "math") == "flash, decode math"
    assert backend_words(None, None) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # transformers' way to call flex_attention
@pytest.mark.parametrize("attention", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_implementations_agree_with_sdpa_in_fp32(llama: LlamaForCausalLM, attention: Attention) -> None:
    """Prefill, then greedy tokens with a cache: the same text."""
    llama.eval().requires_grad_(requires_grad=False)
    tokens = {}
    for each in ("sdpa", attention):
        llama.set_attn_implementation(each)
        tokens[each] = llama.generate(
            IDS,
            attention_mask=torch.ones_like(IDS),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        ).tolist()
    assert tokens[attention] == tokens["sdpa"]
