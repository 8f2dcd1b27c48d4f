"""What turns text into ids and back: a tokenizer, its special tokens and its chat template.

This file does not know about models or messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from transformers import AutoTokenizer

from mcp_core.errors import InvalidModel
from mcp_core.models import synthetic_tokenizer as synthetic
from mcp_core.models.load_errors import foreign_errors

__all__ = ["TextCodec", "read_codec", "synthetic_codec"]

# The second and third are converted by transformers, where it has the package for it.
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


@dataclass(frozen=True, slots=True, eq=False)
class TextCodec:
    """A tokenizer and what its files say beside it; fields as in ``loaded.LoadedModel``."""

    tokenizer: tokenizers.Tokenizer
    chat_template: str | None
    template_tokens: dict[str, str]
    eos_ids: frozenset[int]
    special_ids: frozenset[int]


def read_codec(folder: Path) -> TextCodec:
    """The tokenizer of a model folder. Raises InvalidModel where there is none that can be read."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise InvalidModel(
            f"{folder} has no tokenizer.json.",
            "Copy the tokenizer's files into it: tokenizer.json, tokenizer_config.json.",
        )
    with foreign_errors(f"The tokenizer in {folder}", f"reading the tokenizer in {folder}"):
        fast = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    return _codec(fast)


def synthetic_codec(vocab: int) -> TextCodec:
    """The codec of a random-weight shape; see ``synthetic_tokenizer.py``."""
    ids = frozenset({synthetic.BOS_ID, synthetic.EOS_ID})
    return TextCodec(
        tokenizer=synthetic.synthetic_tokenizer(vocab),
        chat_template=synthetic.CHAT_TEMPLATE,
        template_tokens={"bos_token": synthetic.BOS, "eos_token": synthetic.EOS},
        eos_ids=frozenset({synthetic.EOS_ID}),
        special_ids=ids,
    )


def _codec(fast: Any) -> TextCodec:
    tokenizer: tokenizers.Tokenizer = fast.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    marked = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return TextCodec(
        tokenizer=tokenizer,
        chat_template=_default_template(fast.chat_template),
        template_tokens={
            name: str(token) for name, token in fast.special_tokens_map.items() if isinstance(token, str)
        },
        eos_ids=frozenset() if fast.eos_token_id is None else frozenset({fast.eos_token_id}),
        special_ids=frozenset(marked) | frozenset(fast.all_special_ids),
    )


def _default_template(templates: str | dict[str, str] | None) -> str | None:
    return templates.get("default") if isinstance(templates, dict) else templates
