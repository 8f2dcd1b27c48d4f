"""Attention implementations: which ones a model's class has, and which one a loaded model really runs.

This file does not know which ones a machine offers (``conflicts.py``).
"""

from __future__ import annotations

from transformers import PreTrainedModel

from mcp_core.errors import RecipeError
from mcp_core.recipe import Attention

__all__ = ["require_attention", "running_attention"]

# What transformers asks of a class before it dispatches to an implementation; eager is always there.
_FLAGS: dict[Attention, str] = {
    "sdpa": "_supports_sdpa",
    "flex_attention": "_supports_flex_attn",
    "flash_attention_2": "_supports_flash_attn",
    "flash_attention_3": "_supports_flash_attn",
}


def require_attention(model_class: type[PreTrainedModel], attention: Attention) -> None:
    """Raise RecipeError when this model's class has no such implementation."""
    flag = _FLAGS.get(attention)
    if flag is not None and not getattr(model_class, flag, False):
        there = ["eager", *(name for name, each in _FLAGS.items() if getattr(model_class, each, False))]
        raise RecipeError(f"attention: {model_class.__name__} has no {attention}.", f"It has: {', '.join(there)}.")


def running_attention(model: PreTrainedModel) -> str:
    """The implementation that the model's layers dispatch to, as transformers settled it at load."""
    return str(model.config.get_text_config(decoder=True)._attn_implementation)  # noqa: SLF001 - no public name
