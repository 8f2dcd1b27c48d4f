"""A GGUF's tokenizer as tokenizer.json, by transformers: ``python -m mcp_core.models.gguf_tokenizer GGUF JSON``.

A process of its own, so that one that serves with llama.cpp needs no transformers. This file does not know where
tokenizers are kept (``gguf_codec.py``).
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoTokenizer

__all__ = ["write_tokenizer"]


def write_tokenizer(source: Path, file: Path) -> None:
    """Write it, all at once: a half-written file is never seen."""
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name, trust_remote_code=False)
    partial = file.with_suffix(".partial")
    partial.write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    partial.rename(file)


if __name__ == "__main__":
    write_tokenizer(Path(sys.argv[1]), Path(sys.argv[2]))
