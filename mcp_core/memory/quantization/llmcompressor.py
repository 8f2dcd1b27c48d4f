"""llmcompressor asked to quantize a model anew, by its own methods, in the interpreter that the user named for it.

What it writes is another quantization than the Recipe's: GPTQ corrects what rounding does, so that its fidelity has
to be measured on what was written (``mcp-core fidelity --original``). This file does not know what happens there
(``llmcompressor_child.py``).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mcp_core import texts
from mcp_core.checkpoint_formats import llmcompressor_python
from mcp_core.engines.launch import common_environment
from mcp_core.errors import InvalidModel, OutOfMemory
from mcp_core.memory.passages import passages
from mcp_core.memory.quantization import llmcompressor_child
from mcp_core.memory.quantization.checkpoint_check import logits_of
from mcp_core.models.text_codec import read_codec
from mcp_core.recipe import Recipe
from mcp_core.schemes import group_size_of
from mcp_core.serving.foreign_server import outside_environment

__all__ = ["require_loadable", "write"]

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Where the Recipe leaves alpha to a search of MCP's own, which knows other kernels: what its makers often take.
_ALPHA = 0.8
_KILLED = -9


def write(recipe: Recipe, source: Path, folder: Path) -> tuple[int, dict[str, str]]:
    """Quantize the model in ``source`` into ``folder``; layers packed, and why each other one is dense.

    Calibrated on the Recipe's calibration text. Raises InvalidModel with its last words, OutOfMemory where it was
    killed, and RecipeError for too short a text.
    """
    with tempfile.TemporaryDirectory() as place:
        order = Path(place, "order.json")
        order.write_text(json.dumps(_order(recipe, source, folder)))
        done = subprocess.run(
            # Isolated: else the child's folder, where this very file has the library's name, would come first.
            [str(llmcompressor_python()), "-I", llmcompressor_child.__file__, str(order)],
            cwd=place,
            env=outside_environment(common_environment(recipe)),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == _KILLED:
        raise OutOfMemory("llmcompressor was killed: memory ran out while it quantized.", "Choose a smaller model.")
    said = [line for line in done.stdout.splitlines() if line.startswith('{"packed"')]  # a library may say more
    if done.returncode or not said:
        raise InvalidModel(f"llmcompressor failed: {_last_words(done.stderr) or done.returncode}", "")
    told: dict[str, Any] = json.loads(said[-1])
    return told["packed"], told["left_dense"]


def require_loadable(again: PreTrainedModel) -> None:
    """Raise InvalidModel unless it says something finite when it was loaded again."""
    if not bool(torch.isfinite(logits_of(again)).all()):
        raise InvalidModel("Loaded again, its logits are not finite.", "Nothing was kept.")


def _order(recipe: Recipe, source: Path, folder: Path) -> dict[str, Any]:
    options = recipe.quantization
    is_int4 = options.scheme == "torchao-int4-weight-only"
    alpha = _ALPHA if options.alpha is None else options.alpha
    return {
        "source": str(source.absolute()),
        "out": str(folder),
        "dtype": _DTYPES[recipe.dtype],
        "threads": recipe.threads or 1,
        "bits": 4 if is_int4 else 8,
        "group_size": group_size_of(options) if is_int4 else None,
        "alpha": alpha if options.scheme.endswith("smoothquant") else None,
        "skip": list(options.skip),
        "passages": passages(texts.get(options.calibration.text), read_codec(source), options.calibration),
    }


def _last_words(stderr: str) -> str:
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
