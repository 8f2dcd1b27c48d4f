"""Shapes: sizes of known models, built with random weights where only speed and memory are asked.

This file does not know how the weights are drawn (``random_weights.py``) or what they weigh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mcp_core.errors import ModelNotFound, RecipeError
from mcp_core.models.architecture import Architecture, TensorInfo
from mcp_core.recipe import ModelRef, ShapeSpec

__all__ = ["SHAPES", "architecture_of", "config_of", "spec_of"]

SHAPES: dict[str, ShapeSpec] = {
    "llama-2-7b": ShapeSpec(
        layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, vocab=32000, context=4096
    ),
    "llama-2-13b": ShapeSpec(
        layers=40, hidden=5120, intermediate=13824, heads=40, kv_heads=40, vocab=32000, context=4096
    ),
    "llama-3.1-8b": ShapeSpec(
        layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, vocab=128256, context=131072
    ),
    "qwen3-8b": ShapeSpec(
        layers=36,
        hidden=4096,
        intermediate=12288,
        heads=32,
        kv_heads=8,
        head_dim=128,
        vocab=151936,
        context=40960,
    ),
}


@dataclass(frozen=True, slots=True)
class _Family:
    """What a shape's sizes leave open: the transformers class, its norms and its rotary embedding."""

    model_type: str
    architecture: str
    rms_norm_eps: float
    rope_parameters: MappingProxyType[str, str | float | int]
    head_norms: bool = False


def _rope(**parameters: str | float) -> MappingProxyType[str, str | float | int]:
    return MappingProxyType({"rope_type": "default", **parameters})


_LLAMA = _Family("llama", "LlamaForCausalLM", 1e-5, _rope(rope_theta=10_000.0))
_LLAMA_3_1 = _Family(
    "llama",
    "LlamaForCausalLM",
    1e-5,
    _rope(
        rope_type="llama3",
        rope_theta=500_000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
)
_QWEN3 = _Family("qwen3", "Qwen3ForCausalLM", 1e-6, _rope(rope_theta=1_000_000.0), head_norms=True)
_FAMILIES = {"llama-3.1-8b": _LLAMA_3_1, "qwen3-8b": _QWEN3}


def spec_of(ref: ModelRef) -> ShapeSpec:
    """The sizes that this reference means. Raises ModelNotFound (unknown name) or RecipeError (custom sizes)."""
    spec = ref.shape or SHAPES.get(ref.id)
    if spec is None:
        raise ModelNotFound(f'There is no shape "{ref.id}".', f"There are: {', '.join(SHAPES)}, custom.")
    if _family(ref).model_type == "llama" and spec.hidden % spec.heads:
        raise RecipeError(
            f"model.shape: hidden {spec.hidden} is not a multiple of heads {spec.heads}.",
            "A Llama needs that, with head_dim given too.",
        )
    return spec


def config_of(ref: ModelRef) -> dict[str, Any]:
    """A transformers config.json of this shape. It names no special tokens: the tokenizer is synthetic."""
    spec, family = spec_of(ref), _family(ref)
    return {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "num_hidden_layers": spec.layers,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": _head_dim(spec),
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.context,
        "tie_word_embeddings": spec.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": family.rms_norm_eps,
        "rope_parameters": dict(family.rope_parameters),
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "bfloat16",
    }


def architecture_of(ref: ModelRef) -> Architecture:
    """Every tensor that a model of this shape has, in transformers' names."""
    spec, family = spec_of(ref), _family(ref)
    return Architecture(
        model_type=family.model_type,
        layers=spec.layers,
        hidden=spec.hidden,
        intermediate=spec.intermediate,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=_head_dim(spec),
        vocab=spec.vocab,
        context=spec.context,
        tied=spec.tied,
        native_dtype="bf16",
        tensors=tuple(_tensors(spec, family)),
    )


def _family(ref: ModelRef) -> _Family:
    return _FAMILIES.get(ref.id, _LLAMA)


def _head_dim(spec: ShapeSpec) -> int:
    return spec.head_dim or spec.hidden // spec.heads


def _tensors(spec: ShapeSpec, family: _Family) -> Iterator[TensorInfo]:
    yield TensorInfo("model.embed_tokens.weight", (spec.vocab, spec.hidden))
    for layer in range(spec.layers):
        for name, shape in _layer(spec, family):
            yield TensorInfo(f"model.layers.{layer}.{name}.weight", shape)
    yield TensorInfo("model.norm.weight", (spec.hidden,))
    if not spec.tied:
        yield TensorInfo("lm_head.weight", (spec.vocab, spec.hidden))


def _layer(spec: ShapeSpec, family: _Family) -> Iterator[tuple[str, tuple[int, ...]]]:
    queries, keys = spec.heads * _head_dim(spec), spec.kv_heads * _head_dim(spec)
    yield "self_attn.q_proj", (queries, spec.hidden)
    yield "self_attn.k_proj", (keys, spec.hidden)
    yield "self_attn.v_proj", (keys, spec.hidden)
    yield "self_attn.o_proj", (spec.hidden, queries)
    if family.head_norms:
        yield "self_attn.q_norm", (_head_dim(spec),)
        yield "self_attn.k_norm", (_head_dim(spec),)
    yield "mlp.gate_proj", (spec.intermediate, spec.hidden)
    yield "mlp.up_proj", (spec.intermediate, spec.hidden)
    yield "mlp.down_proj", (spec.hidden, spec.intermediate)
    yield "input_layernorm", (spec.hidden,)
    yield "post_attention_layernorm", (spec.hidden,)
