"""A checkpoint's config.json: whether it can be loaded here, and the sizes it states.

This file does not know where the document comes from (``catalog.py``, ``hub.py``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcp_core.errors import InvalidModel, UnsafeModel
from mcp_core.models.architecture import Architecture, TensorInfo
from mcp_core.models.stored_quantization import read_stored_quantization
from mcp_core.models.stored_tensors import join_parts, without_storage
from mcp_core.recipe import DType

__all__ = ["architecture_from", "read_config", "require_loadable"]

# What transformers' config classes call the same size, newest name first.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_INTERMEDIATE = ("intermediate_size", "n_inner", "ffn_dim")
_HEADS = ("num_attention_heads", "n_head")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx")
_ACTIVE_EXPERTS = ("num_experts_per_tok",)
_DTYPES: dict[str, DType] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_OUTPUT_LAYERS = {"lm_head.weight", "embed_out.weight"}


def read_config(path: Path) -> dict[str, Any]:
    """The parsed config.json. Raises InvalidModel when it is missing or not a JSON object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidModel(
            f"{path.parent} has no config.json.",
            "A model folder holds config.json, safetensors and tokenizer files.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{path} is not valid JSON: {error}.", "Download or copy it again.") from error
    if not isinstance(document, dict):
        raise InvalidModel(f"{path} is not a JSON object.", "Download or copy it again.")
    return document


def require_loadable(config: dict[str, Any], title: str) -> None:
    """Raise UnsafeModel for code in the repository, InvalidModel for what is not a causal text model."""
    if config.get("auto_map"):
        raise UnsafeModel(
            f"{title} needs code from its own repository to run.",
            "Choose a model whose class is part of transformers.",
        )
    names = [str(name) for name in config.get("architectures") or ["nothing"]]
    if not names[0].endswith("ForCausalLM") and names[0] not in _CAUSAL_WITHOUT_SUFFIX:
        raise InvalidModel(
            f"{title} is {names[0]}, not a causal language model.",
            "Choose a text model whose config.json names a ...ForCausalLM class.",
        )


# Causal language models whose class predates the naming.
_CAUSAL_WITHOUT_SUFFIX = {"GPT2LMHeadModel"}


def architecture_from(
    config: dict[str, Any], tensors: Sequence[TensorInfo], stored: DType, title: str
) -> Architecture:
    """Sizes from config.json and the tensors as stored; ``stored`` is the type of the dense ones in their files.

    Raises InvalidModel naming a size that is not stated, or a quantization that is not understood.
    """
    parameters = _parameters(config, tensors, title)

    def size(names: tuple[str, ...], default: int | None = None) -> int:
        stated = (config.get(name) for name in names)
        value = next((each for each in stated if isinstance(each, int) and each > 0), default)
        if value is None:
            raise InvalidModel(f"The config.json of {title} does not state {names[0]}.", "Choose another model.")
        return value

    heads, hidden, layers = size(_HEADS), size(_HIDDEN), size(_LAYERS)
    window, window_layers = _windows(config, layers)
    present = {tensor.name for tensor in parameters}
    tied = config.get("tie_word_embeddings") is True or not (present & _OUTPUT_LAYERS)
    return Architecture(
        model_type=str(config.get("model_type", "unnamed")),
        layers=layers,
        hidden=hidden,
        intermediate=size(_INTERMEDIATE, 4 * hidden),
        heads=heads,
        kv_heads=size(("num_key_value_heads",), heads),
        head_dim=size(("head_dim",), hidden // heads),
        vocab=size(("vocab_size",)),
        context=size(_CONTEXT),
        tied=tied,
        native_dtype=_DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), stored),
        tensors=tuple(tensor for tensor in parameters if not (tied and tensor.name in _OUTPUT_LAYERS)),
        window=window,
        window_layers=window_layers,
        active_experts=size(_ACTIVE_EXPERTS, 0),
    )


def _parameters(config: dict[str, Any], tensors: Sequence[TensorInfo], title: str) -> tuple[TensorInfo, ...]:
    quantized = read_stored_quantization(config, title)
    if quantized is None:
        return without_storage(tensors)
    parameters = join_parts(tensors, quantized.method, quantized.bits)
    if all(tensor.stored_bytes is None for tensor in parameters):
        raise InvalidModel(
            f"The config.json of {title} says {quantized.label}; its files hold no packed weights.",
            "Download it again, or remove quantization_config where the weights are dense.",
        )
    return parameters


def _windows(config: dict[str, Any], layers: int) -> tuple[int | None, int]:
    """The attention window and how many layers have it, by the config's own list of layer types."""
    types, window = config.get("layer_types"), config.get("sliding_window")
    if not isinstance(types, list) or not isinstance(window, int):
        return None, 0
    count = types[:layers].count("sliding_attention")
    return (window, count) if count else (None, 0)
