"""Models whose class in transformers 5.23 has no sdpa attention: said before they are loaded.

The table follows ``_supports_sdpa`` of its causal language models (tests/models/test_attention_support.py). Other
implementations are checked at load (``memory/attention.py``); what a machine offers is in ``conflicts.py``.
"""

from __future__ import annotations

from mcp_core.errors import RecipeError
from mcp_core.recipe import Recipe

__all__ = ["WITHOUT_SDPA", "require_attention_of"]

WITHOUT_SDPA = frozenset(
    {
        "big_bird",
        "bigbird_pegasus",
        "bloom",
        "codegen",
        "cpmant",
        "deepseek_v4",
        "falcon_mamba",
        "flint",
        "gemma2",
        "git",
        "got_ocr2",
        "gpt_neo",
        "gpt_neox_japanese",
        "gpt_oss",
        "gptj",
        "granite_swa",
        "granitemoe_swa",
        "hy_v4",
        "inkling2_text",
        "mamba",
        "mamba2",
        "megatron-bert",
        "mimo_v2_flash",
        "mpt",
        "mvp",
        "openai-gpt",
        "prophetnet",
        "reformer",
        "rembert",
        "roformer",
        "rwkv",
        "trocr",
        "vaultgemma",
        "xglm",
        "xlm",
        "xlnet",
        "xlstm",
    }
)


def require_attention_of(model_type: str, recipe: Recipe) -> None:
    """Raise RecipeError where transformers is asked for sdpa and this type of model has none."""
    if recipe.engine == "transformers" and recipe.attention == "sdpa" and model_type in WITHOUT_SDPA:
        raise RecipeError(f"attention: transformers' {model_type} models have no sdpa.", "Set it to eager.")
