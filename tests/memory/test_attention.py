from __future__ import annotations

import pytest
from transformers import Gemma2ForCausalLM, LlamaForCausalLM

from mcp_core.errors import RecipeError
from mcp_core.memory.attention import require_attention, running_attention
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
