"""A GGUF's tokenizer as tokenizer.json, by transformers: ``python -m mcp_core.models.gguf_tokenizer FILE DIR``.

A process of its own, so that one that serves with llama.cpp needs no transformers. This file does not know where
tokenizers are kept (``gguf_codec.py``).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from mcp_core.models.gguf_file import read_gguf_file

__all__ = ["split_as_llama_cpp", "write_tokenizer"]

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace("{1,3}", "")


def write_tokenizer(source: Path, folder: Path) -> None:
    """Write the files into ``folder``, all at once: a half-written folder is never seen."""
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name, trust_remote_code=False)
    split_as_llama_cpp(tokenizer.backend_tokenizer, source)
    staging = folder.with_suffix(".partial")
    shutil.rmtree(staging, ignore_errors=True)
    tokenizer.save_pretrained(staging)
    staging.rename(folder)


def split_as_llama_cpp(tokenizer: Tokenizer, source: Path) -> None:
    """Cut text into words as the file's ``tokenizer.ggml.pre`` says; transformers 5.23 does not read that field.

    Sources: the tokenizer.json of SmolLM2, Llama 3 and Qwen2; a name not known here keeps transformers' way.
    """
    name = read_gguf_file(source).fields.get("tokenizer.ggml.pre")
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    match name:
        case "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        case "llama-bpe" | "qwen2":
            pattern = Regex(_LLAMA_3 if name == "llama-bpe" else _QWEN_2)
            split = pre_tokenizers.Split(pattern, behavior="isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of_words])


if __name__ == "__main__":
    write_tokenizer(Path(sys.argv[1]), Path(sys.argv[2]))
