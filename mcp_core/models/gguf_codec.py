"""The tokenizer and chat template of a GGUF, read from the file itself in a fraction of a second.

Byte-level BPE (SmolLM, Llama 3, Qwen) is built here. Other kinds are converted by transformers, once, in a child
process (``gguf_tokenizer.py``), and kept by content hash. This file does not know about models or messages.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from mcp_core import paths
from mcp_core.errors import InvalidModel
from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.gguf_file import read_arrays, read_gguf_file

__all__ = ["GgufCodec", "read_gguf_codec"]

_TIMEOUT_S = 300
_TOKENS, _TYPES, _MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))
_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types
_NAMED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_ENDS = ("eos", "eot", "eom")
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, eq=False)
class GgufCodec:
    """Fields as in ``loaded.LoadedModel``."""

    tokenizer: Tokenizer
    chat_template: str | None
    template_tokens: dict[str, str]
    eos_ids: frozenset[int]
    special_ids: frozenset[int]


def read_gguf_codec(resolved: ResolvedModel) -> GgufCodec:
    """Raises InvalidModel when the file has no tokenizer that can be read."""
    source = resolved.gguf_file
    assert source is not None, "only a GGUF has such a tokenizer"
    fields, arrays = read_gguf_file(source).fields, read_arrays(source, frozenset({_TOKENS, _TYPES, _MERGES}))
    if _TOKENS not in arrays:
        raise InvalidModel(f"{source.name} has no tokenizer.", "Choose another GGUF.")
    words = _WORDS.get(fields.get("tokenizer.ggml.pre", ""))
    if fields.get("tokenizer.ggml.model") == "gpt2" and _MERGES in arrays and words is not None:
        tokenizer = _byte_level(fields, arrays, words())
    else:
        tokenizer = _converted(resolved, source)
    names: list[str] = arrays[_TOKENS]
    types = arrays.get(_TYPES, [])
    named = {ours: _id(fields, theirs) for theirs, ours in _NAMED.items()}
    known = {ours: index for ours, index in named.items() if index is not None and index < len(names)}
    template = fields.get("tokenizer.chat_template")
    return GgufCodec(
        tokenizer=tokenizer,
        chat_template=template if isinstance(template, str) else None,
        template_tokens={ours: names[index] for ours, index in known.items()},
        eos_ids=frozenset(index for name in _ENDS if (index := _id(fields, name)) is not None),
        special_ids=frozenset(index for index, kind in enumerate(types) if kind == _CONTROL) | set(known.values()),
    )


def _id(fields: dict[str, Any], name: str) -> int | None:
    index = fields.get(f"tokenizer.ggml.{name}_token_id")
    return index if isinstance(index, int) else None


def _byte_level(fields: dict[str, Any], arrays: dict[str, list[Any]], words: Any) -> Tokenizer:
    names = arrays[_TOKENS]
    merges = [(left, right) for left, _, right in (each.partition(" ") for each in arrays[_MERGES])]
    # llama.cpp takes a word that is a token as it is for Llama 3, whatever the merges make of it.
    whole_words = fields.get("tokenizer.ggml.pre") == "llama-bpe"
    vocab = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=whole_words))
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    kinds = dict(zip(names, arrays.get(_TYPES, []), strict=False))
    for kind, add in ((_CONTROL, tokenizer.add_special_tokens), (_USER_DEFINED, tokenizer.add_tokens)):
        special = kind == _CONTROL
        add([AddedToken(name, special=special, normalized=False) for name in names if kinds.get(name) == kind])
    begin = _id(fields, "bos")
    if fields.get("tokenizer.ggml.add_bos_token") and begin is not None:
        first = (names[begin], begin)
        tokenizer.post_processor = processors.TemplateProcessing(f"{first[0]} $A", None, [first])
    return tokenizer


def _smollm_words() -> Any:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def _split_words(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# tokenizer.ggml.pre -> how text is cut into words, as in the tokenizer.json of SmolLM2, Llama 3, Qwen2 and GPT-2.
_WORDS: dict[str, Callable[[], Any]] = {
    "smollm": _smollm_words,
    "llama-bpe": lambda: _split_words(_LLAMA_3),
    "qwen2": lambda: _split_words(_LLAMA_3.replace("{1,3}", "")),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
}


def _converted(resolved: ResolvedModel, source: Path) -> Tokenizer:
    """By transformers; made where it is not there yet."""
    file = paths.home("tokenizers") / f"{resolved.ref.sha256}.json"
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            command = [sys.executable, "-m", "mcp_core.models.gguf_tokenizer", str(source), str(file)]
            why = _why_it_failed(command)
            if why:
                raise InvalidModel(
                    f"{source.name} has no tokenizer that can be read: {why}", "Choose another GGUF."
                )
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _why_it_failed(command: list[str]) -> str:
    """The last line that this command wrote before it failed; empty where it did not."""
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"reading it takes longer than {_TIMEOUT_S} s"
    return (made.stderr.strip().splitlines() or ["no reason given"])[-1][:300] if made.returncode else ""
