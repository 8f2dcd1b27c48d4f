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
    "llama-3.1-70b": ShapeSpec(
        layers=80, hidden=8192, intermediate=28672, heads=64, kv_heads=8, vocab=128256, context=131072
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
    "qwen3-30b-a3b": ShapeSpec(
        layers=48,
        hidden=2048,
        intermediate=768,
        heads=32,
        kv_heads=4,
        head_dim=128,
        vocab=151936,
        context=40960,
    ),
    "gpt-oss-20b": ShapeSpec(
        layers=24,
        hidden=2880,
        intermediate=2880,
        heads=64,
        kv_heads=8,
        head_dim=64,
        vocab=201088,
        context=131072,
    ),
}


# Every GPT-OSS layer of even number attends to a window of this many tokens; the published checkpoints' value.
_GPT_OSS_WINDOW = 128


@dataclass(frozen=True, slots=True)
class _Experts:
    """A mixture of experts in place of the MLP: ``active`` of ``total`` work on a token."""

    total: int
    active: int


@dataclass(frozen=True, slots=True)
class _Family:
    """What a shape's sizes leave open: the transformers class and what is particular to its layers.

    In a mixture of experts ``ShapeSpec.intermediate`` is the width of one expert.
    """

    model_type: str
    architecture: str
    rms_norm_eps: float
    rope_parameters: MappingProxyType[str, str | float | int | bool]
    head_norms: bool = False
    experts: _Experts | None = None
    window: int | None = None


def _rope(**parameters: str | float | bool) -> MappingProxyType[str, str | float | int | bool]:
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
_QWEN3_MOE = _Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    1e-6,
    _rope(rope_theta=1_000_000.0),
    head_norms=True,
    experts=_Experts(total=128, active=8),
)
_GPT_OSS = _Family(
    "gpt_oss",
    "GptOssForCausalLM",
    1e-5,
    _rope(
        rope_type="yarn",
        rope_theta=150_000.0,
        factor=32.0,
        beta_fast=32.0,
        beta_slow=1.0,
        original_max_position_embeddings=4096,
        truncate=False,
    ),
    experts=_Experts(total=32, active=4),
    window=_GPT_OSS_WINDOW,
)
_FAMILIES = {
    "llama-3.1-8b": _LLAMA_3_1,
    "llama-3.1-70b": _LLAMA_3_1,
    "qwen3-8b": _QWEN3,
    "qwen3-30b-a3b": _QWEN3_MOE,
    "gpt-oss-20b": _GPT_OSS,
}


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
    return _config(spec_of(ref), _family(ref))


def architecture_of(ref: ModelRef) -> Architecture:
    """Every tensor that a model of this shape has, in transformers' names."""
    return _architecture(spec_of(ref), _family(ref))


def _config(spec: ShapeSpec, family: _Family) -> dict[str, Any]:
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
        "attention_bias": family.model_type == "gpt_oss",
        "rms_norm_eps": family.rms_norm_eps,
        "rope_parameters": dict(family.rope_parameters),
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "bfloat16",
        **_experts_config(spec, family),
    }


def _experts_config(spec: ShapeSpec, family: _Family) -> dict[str, Any]:
    if family.experts is None:
        return {}
    counts = {"num_local_experts": family.experts.total, "num_experts_per_tok": family.experts.active}
    if family.model_type == "gpt_oss":
        return counts | {"sliding_window": family.window, "layer_types": _layer_types(spec)}
    return counts | {"moe_intermediate_size": spec.intermediate, "norm_topk_prob": True}


def _layer_types(spec: ShapeSpec) -> list[str]:
    return ["full_attention" if layer % 2 else "sliding_attention" for layer in range(spec.layers)]


def _architecture(spec: ShapeSpec, family: _Family) -> Architecture:
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
        window=family.window,
        window_layers=_layer_types(spec).count("sliding_attention") if family.window else 0,
        active_experts=family.experts.active if family.experts else 0,
    )


def _family(ref: ModelRef) -> _Family:
    return _FAMILIES.get(ref.id, _LLAMA)


def _head_dim(spec: ShapeSpec) -> int:
    return spec.head_dim or spec.hidden // spec.heads


def _tensors(spec: ShapeSpec, family: _Family) -> Iterator[TensorInfo]:
    yield TensorInfo("model.embed_tokens.weight", (spec.vocab, spec.hidden))
    for layer in range(spec.layers):
        for name, shape in _layer(spec, family):
            yield TensorInfo(f"model.layers.{layer}.{name}", shape)
    yield TensorInfo("model.norm.weight", (spec.hidden,))
    if not spec.tied:
        yield TensorInfo("lm_head.weight", (spec.vocab, spec.hidden))


def _layer(spec: ShapeSpec, family: _Family) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _attention(spec, family)
    if family.experts is None:
        yield "mlp.gate_proj.weight", (spec.intermediate, spec.hidden)
        yield "mlp.up_proj.weight", (spec.intermediate, spec.hidden)
        yield "mlp.down_proj.weight", (spec.hidden, spec.intermediate)
    elif family.model_type == "gpt_oss":
        yield from _gpt_oss_experts(spec, family.experts.total)
    else:
        yield "mlp.gate.weight", (family.experts.total, spec.hidden)
        yield "mlp.experts.gate_up_proj", (family.experts.total, 2 * spec.intermediate, spec.hidden)
        yield "mlp.experts.down_proj", (family.experts.total, spec.hidden, spec.intermediate)
    yield "input_layernorm.weight", (spec.hidden,)
    yield "post_attention_layernorm.weight", (spec.hidden,)


def _attention(spec: ShapeSpec, family: _Family) -> Iterator[tuple[str, tuple[int, ...]]]:
    queries, keys = spec.heads * _head_dim(spec), spec.kv_heads * _head_dim(spec)
    sizes = {"q": (queries, spec.hidden), "k": (keys, spec.hidden), "v": (keys, spec.hidden)}
    for name, (rows, columns) in (sizes | {"o": (spec.hidden, queries)}).items():
        yield f"self_attn.{name}_proj.weight", (rows, columns)
        if family.model_type == "gpt_oss":
            yield f"self_attn.{name}_proj.bias", (rows,)
    if family.model_type == "gpt_oss":
        yield "self_attn.sinks", (spec.heads,)
    if family.head_norms:
        yield "self_attn.q_norm.weight", (_head_dim(spec),)
        yield "self_attn.k_norm.weight", (_head_dim(spec),)


def _gpt_oss_experts(spec: ShapeSpec, total: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Stored input first, unlike any linear layer, and with biases."""
    yield "mlp.router.weight", (total, spec.hidden)
    yield "mlp.router.bias", (total,)
    yield "mlp.experts.gate_up_proj", (total, spec.hidden, 2 * spec.intermediate)
    yield "mlp.experts.gate_up_proj_bias", (total, 2 * spec.intermediate)
    yield "mlp.experts.down_proj", (total, spec.intermediate, spec.hidden)
    yield "mlp.experts.down_proj_bias", (total, spec.hidden)
