"""The tokenizer and chat template of a GGUF, without dequantizing it and without transformers in this process.

transformers makes them from the file once, in a child process (``gguf_tokenizer.py``, some seconds); they are kept
by content hash. This file does not know about models or messages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from tokenizers import Tokenizer

from mcp_core import paths
from mcp_core.errors import InvalidModel
from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.gguf_file import read_gguf_file

__all__ = ["GgufCodec", "read_gguf_codec", "tokenizer_folder"]

_TIMEOUT_S = 300
_END_FIELDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


@dataclass(frozen=True, slots=True, eq=False)
class GgufCodec:
    """Fields as in ``loaded.LoadedModel``."""

    tokenizer: Tokenizer
    chat_template: str | None
    template_tokens: dict[str, str]
    eos_ids: frozenset[int]
    special_ids: frozenset[int]


def tokenizer_folder(resolved: ResolvedModel) -> Path:
    """Where this GGUF's tokenizer lies; it may have yet to be made."""
    assert resolved.ref.sha256 is not None, "a GGUF is hashed when it is resolved"
    return paths.home("tokenizers") / resolved.ref.sha256


def read_gguf_codec(resolved: ResolvedModel) -> GgufCodec:
    """Read it, made first where it is not there yet. Raises InvalidModel when the file has none to be read."""
    source = resolved.gguf_file
    assert source is not None, "only a GGUF has such a tokenizer"
    folder = _made(tokenizer_folder(resolved), source)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    named = _named_tokens(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")))
    marked = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    template = folder / "chat_template.jinja"
    return GgufCodec(
        tokenizer=tokenizer,
        chat_template=template.read_text(encoding="utf-8") if template.is_file() else None,
        template_tokens=named,
        eos_ids=_eos_ids(source),
        special_ids=frozenset(marked | {index for text in named.values() if (index := _id(tokenizer, text)) >= 0}),
    )


def _made(folder: Path, source: Path) -> Path:
    with FileLock(f"{folder}.lock"):
        if not (folder / "tokenizer.json").is_file():
            command = [sys.executable, "-m", "mcp_core.models.gguf_tokenizer", str(source), str(folder)]
            made = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
            if made.returncode != 0:
                last = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise InvalidModel(
                    f"{source.name} has no tokenizer that can be read: {last[:300]}", "Choose another GGUF."
                )
    return folder


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, ... as strings; older files write an object."""
    named = {key: value for key, value in config.items() if key.endswith("_token") and value}
    texts = {key: value["content"] if isinstance(value, dict) else value for key, value in named.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def _eos_ids(source: Path) -> frozenset[int]:
    fields = read_gguf_file(source).fields
    return frozenset(int(fields[name]) for name in _END_FIELDS if isinstance(fields.get(name), int))


def _id(tokenizer: Tokenizer, text: str) -> int:
    index = tokenizer.token_to_id(text)
    return -1 if index is None else int(index)
