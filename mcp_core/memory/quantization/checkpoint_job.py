"""The quantize job: load a Recipe's model, write it as a checkpoint, load that again and compare.

This file does not know how a format is written (``saving.py``) or which can be (``checkpoint_formats.py``).
"""

from __future__ import annotations

import asyncio
import gc
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mcp_core import conflicts, hardware
from mcp_core.checkpoint_formats import (
    LLMCOMPRESSOR,
    CheckpointFormat,
    SavedCheckpoint,
    require_new_folder,
    require_savable,
)
from mcp_core.errors import InvalidModel, RecipeError
from mcp_core.jobs import Job, Outcome
from mcp_core.memory.quantization import llmcompressor, saving
from mcp_core.memory.quantization.checkpoint_check import (
    Probe,
    difference,
    logits_of,
    require_same_answers,
    require_same_numbers,
)
from mcp_core.models import catalog, loader
from mcp_core.models.architecture import DTYPE_BYTES, LINEAR_EXPERTS, ResolvedModel
from mcp_core.models.loaded import LoadedModel
from mcp_core.recipe import Recipe
from mcp_core.schemes import SCHEMES

__all__ = ["run"]


async def run(job: Job) -> Outcome:
    """Request: recipe, out, format. Secrets: hub_token. The result is a SavedCheckpoint."""
    return await asyncio.to_thread(_answer, job)


def _answer(job: Job) -> Outcome:
    recipe = conflicts.resolve(Recipe.from_dict(job.request["recipe"]), hardware.detect())
    fmt, out = job.request["format"], Path(job.request["out"])
    require_savable(recipe, torch.device(recipe.device).type, fmt)
    require_new_folder(out)
    torch.set_num_threads(recipe.threads or 1)
    token = job.secrets.get("hub_token")
    resolved = catalog.resolve(recipe.model, hub_token=token)
    _require_writable(resolved, fmt)
    write = _WRITERS.get(fmt, _write_quantized)
    return Outcome("done", result=write(job, recipe, resolved, fmt, out).model_dump(mode="json"))


def _require_writable(resolved: ResolvedModel, fmt: CheckpointFormat) -> None:
    if resolved.quantized is not None:
        raise RecipeError(f"{resolved.title} is quantized already.", "Choose its original checkpoint.")
    if fmt != "gguf" and resolved.architecture.model_type in LINEAR_EXPERTS:
        raise RecipeError(
            f"{resolved.title} is a mixture of experts, which are packed one by one here.",
            "transformers would not load such a checkpoint again; take one that comes quantized.",
        )


def _write_quantized(
    job: Job, recipe: Recipe, resolved: ResolvedModel, fmt: CheckpointFormat, out: Path
) -> SavedCheckpoint:
    loaded = loader.load(resolved, recipe, job.tell, job.secrets.get("hub_token"))
    with saving.staged(out, loaded.weights_bytes) as folder:
        job.tell("save", None, f"Writing {out.name}.")
        if fmt == "library":
            saving.write_library(loaded, folder)
        else:
            saving.write_compressed(loaded, recipe.quantization.scheme, folder)
        saved = _described(folder, out, fmt, loaded, recipe)
        if fmt == "compressed-tensors" and find_spec("compressed_tensors") is None:
            return saved  # transformers could not load it here
        written, dtype = Probe(loaded.model), loaded.model.get_input_embeddings().weight.dtype
        del loaded  # both at once might not fit
        gc.collect()
        job.tell("check", None, "Loading it again and comparing numbers and logits.")
        again = saving.reload(folder, dtype, recipe.device, recipe.attention)
        found = _checked(fmt, folder, written, again)
    return saved.model_copy(update=found)


def _checked(fmt: CheckpointFormat, folder: Path, written: Probe, again: PreTrainedModel) -> dict[str, float]:
    """How the logits differ. The library's own format gives the same computation; compressed-tensors another."""
    if fmt == "library":
        differs = difference(logits_of(again), written.logits)
        if differs != 0:  # NaN too
            raise InvalidModel(f"Loaded again, its logits differ by {differs:.2%}.", "Nothing was kept.")
        return {"logit_difference": differs}
    logits_of(again)  # it is expanded at the first use
    require_same_numbers(folder, again)
    differs, rounding = require_same_answers(written, again)
    return {"logit_difference": differs, "logit_rounding": rounding}


def _write_gguf(
    job: Job, recipe: Recipe, resolved: ResolvedModel, fmt: CheckpointFormat, out: Path
) -> SavedCheckpoint:
    fetched = loader.fetch(resolved, job.tell, job.secrets.get("hub_token"))
    assert fetched.folder is not None, "a model with weights has been fetched"
    with saving.staged(out, fetched.architecture.parameters * DTYPE_BYTES["bf16"]) as folder:
        job.tell("save", None, f"Converting {fetched.title} with llama.cpp.")
        saving.write_gguf(fetched.folder, folder, out.name, fetched.title)
        return _described(folder, out, fmt, None, recipe)


def _write_llmcompressor(
    job: Job, recipe: Recipe, resolved: ResolvedModel, fmt: CheckpointFormat, out: Path
) -> SavedCheckpoint:
    fetched = loader.fetch(resolved, job.tell, job.secrets.get("hub_token"))
    assert fetched.folder is not None, "a model with weights has been fetched"
    with saving.staged(out, fetched.architecture.parameters * DTYPE_BYTES[recipe.dtype]) as folder:
        job.tell("quantize", None, f"llmcompressor: {LLMCOMPRESSOR[recipe.quantization.scheme]}. Minutes.")
        packed, left_dense = llmcompressor.write(recipe, fetched.folder, folder)
        saving.copy_texts(fetched.folder, folder)
        job.tell("check", None, "Loading it again.")
        if find_spec("compressed_tensors") is not None:
            llmcompressor.require_loadable(saving.reload(folder, torch.bfloat16, recipe.device, recipe.attention))
        saved = _described(folder, out, fmt, None, recipe)
    return saved.model_copy(update={"quantized_modules": packed, "skip_reasons": left_dense})


_WRITERS = {"gguf": _write_gguf, "llmcompressor": _write_llmcompressor}


def _described(
    folder: Path, out: Path, fmt: CheckpointFormat, loaded: LoadedModel | None, recipe: Recipe
) -> SavedCheckpoint:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    saved = SavedCheckpoint(
        folder=str(out.absolute()),
        format=fmt,
        bytes=sum(path.stat().st_size for path in files),
        files=tuple(str(path.relative_to(folder)) for path in files),
        deployable_as=_DEPLOYABLE.get(fmt) or SCHEMES[recipe.quantization.scheme].deployable_as,
    )
    if loaded is None:
        return saved
    facts = {
        "weights_bytes": loaded.weights_bytes,
        "quantized_modules": loaded.effective.quantized_modules,
        "skip_reasons": loaded.effective.skip_reasons,
    }
    return saved.model_copy(update=facts)


_DEPLOYABLE: dict[CheckpointFormat, str] = {
    "compressed-tensors": "vLLM, SGLang: the folder as it is",
    "llmcompressor": "vLLM, SGLang: the folder as it is",
    "gguf": "llama.cpp: llama-server -m FILE",
}
