"""Saving: a quantized model written as a checkpoint that loads again, here and elsewhere: safetensors, no pickle.

It is written beside the asked folder and moved there when it is whole. This file does not know which Recipes can
be saved (``checkpoint_formats.py``).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from mcp_core.checkpoint_formats import GGUF_CONVERTERS
from mcp_core.errors import InvalidModel, UnsafeModel
from mcp_core.memory.quantization.compressed import compressed_config, compressed_tensors
from mcp_core.models.load_errors import foreign_errors
from mcp_core.models.loaded import LoadedModel
from mcp_core.models.prepared import disk_full, require_space
from mcp_core.models.rope_fields import with_top_level_rope
from mcp_core.recipe import SchemeName

__all__ = ["copy_texts", "reload", "staged", "write_compressed", "write_gguf", "write_library"]

# What a checkpoint carries beside weights and config.json.
_TEXT_FILES = ("tokenizer*", "*.jinja", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt")
# What torch.save writes: loading it can run code.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")


@contextmanager
def staged(folder: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder to write in, which becomes ``folder`` at the end, or is gone when something is raised.

    Raises DiskFull, and UnsafeModel when a pickle was written.
    """
    folder = folder.absolute()
    require_space(folder.parent, needed_bytes, folder.name)
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        with disk_full(folder.parent, folder.name):
            yield beside
        for pattern in _PICKLES:
            if any(beside.glob(pattern)):
                raise UnsafeModel(f"The library wrote a pickle ({pattern}).", "Nothing was kept.")
        if folder.exists():
            folder.rmdir()  # an empty one, or this fails
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_library(loaded: LoadedModel, folder: Path) -> None:
    """As transformers writes it, with the library's own quantization_config."""
    loaded.model.save_pretrained(folder)
    _write_config(json.loads((folder / "config.json").read_text()), folder)
    copy_texts(loaded.resolved.folder, folder)


def write_compressed(loaded: LoadedModel, scheme: SchemeName, folder: Path) -> None:
    """In the layout of compressed-tensors; config.json says so."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in compressed_tensors(loaded.model)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = loaded.model.config.to_diff_dict()
    config["architectures"] = [type(loaded.model).__name__]
    config["quantization_config"] = compressed_config(loaded.model, scheme, loaded.effective.skipped_modules)
    _write_config(config, folder)
    loaded.model.generation_config.save_pretrained(folder)
    copy_texts(loaded.resolved.folder, folder)


def write_gguf(source: Path, folder: Path, stem: str, title: str) -> None:
    """By llama.cpp's converter, as Q8_0, in a file named by ``stem``; the model is called ``title`` in it.

    Left alone it takes the name of ``source``, which of a prepared model is a hash. Raises InvalidModel with the
    converter's last words when it fails.
    """
    converter = next(filter(None, map(which, GGUF_CONVERTERS)))
    target = folder / f"{stem}-Q8_0.gguf"
    command = [converter, str(source), "--outtype", "q8_0", "--outfile", str(target), "--model-name", title]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not target.is_file():
        said = (done.stderr or done.stdout).strip().splitlines()
        raise InvalidModel(f"llama.cpp's converter failed: {said[-1] if said else done.returncode}", "")


def reload(folder: Path, dtype: torch.dtype, device: str, attention: str) -> PreTrainedModel:
    """The checkpoint as transformers alone loads it. Raises InvalidModel or OutOfMemory."""
    with foreign_errors(folder.name, "loading it again"):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            device_map={"": device},
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
        )
    return model.eval()


def _write_config(config: dict[str, Any], folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(with_top_level_rope(config), indent=2) + "\n")


def copy_texts(source: Path | None, folder: Path) -> None:
    """Tokenizer and chat template, where the library did not write them."""
    assert source is not None, "a model with weights has a folder"
    for pattern in _TEXT_FILES:
        for path in source.glob(pattern):
            if path.is_file() and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
