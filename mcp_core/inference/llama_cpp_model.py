"""From a resolved GGUF and a Recipe to a model that llama.cpp serves, with what the API needs beside it.

Weights stay as the file has them; nothing is dequantized or prepared. This file does not
know how tokens are generated (``llama_cpp_engine.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tokenizers import Tokenizer

from mcp_core import llama_cpp
from mcp_core.inference.llama_cpp_server import LlamaServer
from mcp_core.models import footprint
from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.gguf_codec import read_gguf_codec
from mcp_core.recipe import Recipe
from mcp_core.results import Effective

__all__ = ["LlamaCppModel", "load"]

Report = Callable[[str, float | None, str], None]


@dataclass(frozen=True, slots=True, eq=False)
class LlamaCppModel:
    """What ``served_model.ServedModel`` asks for, and llama.cpp's server; fields as in ``loaded.LoadedModel``."""

    server: LlamaServer
    tokenizer: Tokenizer
    chat_template: str | None
    template_tokens: dict[str, str]
    eos_ids: frozenset[int]
    special_ids: frozenset[int]
    vocab_size: int
    max_context: int
    weights_bytes: int
    effective: Effective
    title: str
    resolved: ResolvedModel
    random_weights: bool = False


def load(resolved: ResolvedModel, recipe: Recipe, report: Report) -> LlamaCppModel:
    """Bring the file into memory; ``device`` and ``threads`` of the Recipe already resolved.

    Raises InvalidModel for a file whose tokenizer cannot be read, RecipeError for a context longer than the
    model's, LoadFailed for one that llama.cpp does not take.
    """
    source = resolved.gguf_file
    assert source is not None, "conflicts.require_runnable comes first"
    codec = read_gguf_codec(resolved)
    max_context = footprint.resolve_max_context(recipe, resolved.architecture)
    report("load", None, f"Loading weights (gguf {resolved.gguf_type}) with llama.cpp.")
    return LlamaCppModel(
        server=LlamaServer(Path(source), recipe, max_context),
        tokenizer=codec.tokenizer,
        chat_template=codec.chat_template,
        template_tokens=codec.template_tokens,
        eos_ids=codec.eos_ids,
        special_ids=codec.special_ids,
        vocab_size=resolved.architecture.vocab,
        max_context=max_context,
        weights_bytes=sum(tensor.stored_bytes or 0 for tensor in resolved.stored_tensors),
        effective=_effective(resolved, recipe, max_context),
        title=resolved.title,
        resolved=resolved,
    )


def _effective(resolved: ResolvedModel, recipe: Recipe, max_context: int) -> Effective:
    dense = [tensor for tensor in resolved.architecture.tensors if len(tensor.shape) < 2]
    return Effective(
        device=recipe.device,
        dtype="fp32",  # llama.cpp's own type for everything that is not a weight
        scheme=f"gguf {resolved.gguf_type}",
        attention="llama.cpp" if llama_cpp.flash_attention(recipe) else "llama.cpp, without FlashAttention",
        kv_kind=llama_cpp.KV_TYPE,
        max_context=max_context,
        threads=recipe.threads or 1,
        batching_mode=recipe.batching.mode,
        engine="llama.cpp",
        engine_version=f"{llama_cpp.LIBRARY} {metadata.version(llama_cpp.LIBRARY)}",
        quantized_modules=len(resolved.architecture.tensors) - len(dense),
        model_type=resolved.architecture.model_type,
        parameters=resolved.architecture.parameters,
    )
