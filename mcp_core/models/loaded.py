"""LoadedModel: a model in memory with everything an engine needs beside it.

This file does not know how it got there (``loader.py``) or how tokens are generated (``inference/``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tokenizers
from transformers import PreTrainedModel

from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.text_codec import TextCodec
from mcp_core.results import Effective

__all__ = ["LoadedModel", "Report"]

# How loading tells how far it is: (stage, fraction or None where it cannot be known, message).
Report = Callable[[str, float | None, str], None]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model ready to run: in eval mode, without gradients, on its device.

    ``template_tokens`` are the strings a chat template may name (``bos_token``, ``eos_token``, ...). Any id in
    ``eos_ids`` ends a reply; ``special_ids`` are never shown as text. ``vocab_size`` is the number of rows of
    the output layer (logits per position), which may exceed the tokenizer's. ``max_context`` is the longest
    prompt + reply in tokens. ``weights_bytes`` counts unique storages. ``effective`` says what really runs.
    """

    model: PreTrainedModel
    tokenizer: tokenizers.Tokenizer
    chat_template: str | None
    template_tokens: dict[str, str]
    eos_ids: frozenset[int]
    special_ids: frozenset[int]
    vocab_size: int
    max_context: int
    weights_bytes: int
    effective: Effective
    title: str
    random_weights: bool
    resolved: ResolvedModel

    @property
    def codec(self) -> TextCodec:
        """What turns text into ids and back."""
        return TextCodec(self.tokenizer, self.chat_template, self.template_tokens, self.eos_ids, self.special_ids)
