"""A GGUF file made into dense safetensors, once: transformers dequantizes it, the prepared cache keeps it.

This file does not know where the cache lies or how it stays whole (``prepared.py``), nor how models are loaded.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from mcp_core.models import prepared
from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.load_errors import foreign_errors, require_complete
from mcp_core.models.loaded import Report

__all__ = ["prepare_gguf"]


def prepare_gguf(resolved: ResolvedModel, report: Report) -> Path:
    """The folder with this GGUF's weights in fp32, its tokenizer and chat template; made if not there.

    Raises InvalidModel, DiskFull or OutOfMemory; nothing half written stays.
    """
    sha256, source = resolved.ref.sha256, resolved.gguf_file
    assert sha256 is not None, "a GGUF is hashed when it is resolved"
    assert source is not None, "only a GGUF is prepared"
    with prepared.staging(sha256, resolved.prepare_bytes, title=resolved.title, source=str(source)) as folder:
        if folder is not None:
            kept = "it is kept for the next time; transformers cannot keep this architecture packed"
            report("prepare", None, f"Dequantizing {source.name} ({resolved.gguf_type}), once; {kept}.")
            with redirect_stderr(StringIO()):  # two progress bars, one of them without a switch
                _dequantize(source, folder)
    return prepared.folder_for(sha256)


def _dequantize(source: Path, folder: Path) -> None:
    parent, name = str(source.parent), source.name
    with foreign_errors(name, f"preparing {name}"):
        model, info = AutoModelForCausalLM.from_pretrained(
            parent,
            gguf_file=name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # require_complete names them
        )
        require_complete(info)
        tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
