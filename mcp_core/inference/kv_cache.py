"""Key/value caches by kind: one function a kind, each giving a fresh cache for one sequence; and the one way to
run a model over more tokens with any of them.

This file does not know about requests or pages; transformers' cache classes do the storing.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from transformers import Cache, DynamicCache, QuantizedCache, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer, Fp8QuantizedLayer

from mcp_core.errors import RecipeError
from mcp_core.recipe import KVKind

__all__ = [
    "DEFAULT_BITS",
    "DEFAULT_WINDOW",
    "FP8_CALIBRATION_TOKENS",
    "CacheFactory",
    "NoCache",
    "cache_factory",
    "extend",
]

# An fp8 scale taken from fewer tokens misjudges the range of the rest (CONTRACTS.md: KL 0.91 against 0.0025).
FP8_CALIBRATION_TOKENS = 64
# What kv.window and kv.bits mean when they are null.
DEFAULT_WINDOW = 512
DEFAULT_BITS = 4
# quanto and HQQ keep this many of the newest tokens dense, and give this many values one scale.
_RESIDUAL_TOKENS = 128
_GROUP = 64
_FULL_ATTENTION_ONLY: frozenset[KVKind] = frozenset(
    {"sliding", "quantized-fp8", "quantized-quanto", "quantized-hqq"}
)

CacheFactory = Callable[[], Any]


def cache_factory(
    kind: KVKind, config: Any, max_context: int, *, window: int | None = None, bits: int | None = None
) -> CacheFactory:
    """A function that gives an empty cache of this kind for one sequence of at most ``max_context`` tokens.

    Its caches go with ``extend``, which knows what each kind needs of the model's forward pass. ``window`` and
    ``bits`` are a Recipe's ``kv.window`` and ``kv.bits``. Raises RecipeError where this model cannot have it.
    """
    if kind in _FULL_ATTENTION_ONLY:
        _require_full_attention(kind, config)
    match kind:
        case "dynamic":
            return lambda: DynamicCache(config=config)
        case "offloaded":
            return lambda: DynamicCache(config=config, offloading=True)
        case "static":
            return _static(config, max_context)
        case "sliding":
            return _sliding(config, window or DEFAULT_WINDOW)
        case "quantized-fp8":
            return lambda: Fp8Cache(config)
        case "quantized-quanto" | "quantized-hqq":
            return _quantized(kind, config, bits or DEFAULT_BITS)
        case "off":
            return NoCache


def extend(model: Any, tokens: torch.Tensor, cache: Any, logits_to_keep: int = 0) -> torch.Tensor:
    """Run ``tokens [1, new]`` after those already in ``cache``; logits ``[1, kept, vocab]`` of the last
    ``logits_to_keep`` of them (0: all of them).

    ``cache`` comes from ``cache_factory`` and grows by ``tokens``.
    """
    if isinstance(cache, NoCache):
        return cache.recompute(model, tokens, logits_to_keep)
    arguments: dict[str, Any] = {
        _cache_argument(model): cache,
        "use_cache": True,
        "logits_to_keep": last_of(tokens.shape[1], logits_to_keep, tokens.device),
    }
    if isinstance(cache, SlidingCache):
        arguments["attention_mask"] = cache.mask(model, tokens)
    logits: torch.Tensor = model(tokens, **arguments).logits
    return logits


def last_of(positions: int, count: int, device: torch.device) -> int | torch.Tensor:
    """``logits_to_keep`` for the last ``count`` of ``positions``; 0, and as many as there are, are all of them.

    Positions and not a number: a number makes a view with gaps, for which a CPU's product copies the whole output
    matrix first (torch 2.13; a prefill of 64 tokens took 2.6 times as long, SmolLM2-135M in bf16).
    """
    if count in (0, positions):
        return 0
    return torch.arange(max(0, positions - count), positions, device=device)


def _cache_argument(model: Any) -> str:
    """transformers 5.24 renames the argument."""
    return "cache" if "cache" in _parameters(type(model).forward) else "past_key_values"


@functools.lru_cache(maxsize=8)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


class NoCache:
    """Keeps tokens instead of keys and values: every step computes the whole sequence again."""

    def __init__(self) -> None:
        self._tokens: torch.Tensor | None = None

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return 0 if self._tokens is None else self._tokens.shape[1]

    def recompute(self, model: Any, tokens: torch.Tensor, logits_to_keep: int) -> torch.Tensor:
        """As ``extend``."""
        self._tokens = tokens if self._tokens is None else torch.cat([self._tokens, tokens], dim=1)
        kept = last_of(self._tokens.shape[1], logits_to_keep or tokens.shape[1], tokens.device)
        logits: torch.Tensor = model(self._tokens, use_cache=False, logits_to_keep=kept).logits
        return logits


class SlidingCache(Cache):  # type: ignore[misc]
    """Keys and values of the last ``window - 1`` tokens: with itself, each token sees ``window`` of them."""

    def __init__(self, layers: int, window: int) -> None:
        super().__init__(layers=[DynamicSlidingWindowLayer(sliding_window=window) for _ in range(layers)])
        self.window = window

    def mask(self, model: Any, tokens: torch.Tensor) -> torch.Tensor | None:
        """The band that a chunk needs beyond the window; None while transformers' causal mask is the same."""
        new, past = tokens.shape[1], int(self.get_seq_length())
        if new == 1 or past + new <= self.window:
            return None
        keys = min(past, self.window - 1) + new
        distance = torch.arange(keys - new, keys, device=tokens.device)[:, None] - torch.arange(
            keys, device=tokens.device
        )
        seen = ((distance >= 0) & (distance < self.window))[None, None]
        if model.config._attn_implementation == "sdpa":  # noqa: SLF001 - no public name
            return seen
        lowest = torch.finfo(model.dtype).min
        return torch.zeros(seen.shape, dtype=model.dtype, device=tokens.device).masked_fill(~seen, lowest)


def _sliding(config: Any, window: int) -> CacheFactory:
    layers = config.get_text_config(decoder=True).num_hidden_layers
    return lambda: SlidingCache(layers, window)


def _require_full_attention(kind: KVKind, config: Any) -> None:
    """Raise RecipeError for a model some of whose layers keep a window or a state of their own."""
    text = config.get_text_config(decoder=True)
    types = set(getattr(text, "layer_types", None) or ["full_attention"])
    limited = any(getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size"))
    if types != {"full_attention"} or (not getattr(text, "layer_types", None) and limited):
        raise RecipeError(
            f"kv.kind: this model has layers that keep a window or a state of their own; {kind} cannot hold them.",
            "Choose dynamic: it keeps what each layer needs.",
        )


def _static(config: Any, max_context: int) -> CacheFactory:
    cache = StaticCache(config=config, max_cache_len=max_context)

    @torch.inference_mode()  # its tensors were made in inference mode and may be changed only there
    def reuse() -> StaticCache:
        cache.reset()
        return cache

    return reuse


def _quantized(kind: Literal["quantized-quanto", "quantized-hqq"], config: Any, bits: int) -> CacheFactory:
    backend = kind.removeprefix("quantized-")
    # HQQ counts axes its own way; both then share a scale along one head's width, as transformers documents.
    axis = {"axis_key": 1, "axis_value": 1} if backend == "hqq" else {}

    def fresh() -> QuantizedCache:
        return QuantizedCache(
            backend, config, nbits=bits, q_group_size=_GROUP, residual_length=_RESIDUAL_TOKENS, **axis
        )

    return fresh


class _SaturatingFp8Layer(Fp8QuantizedLayer):  # type: ignore[misc]
    """transformers' fp8 layer, but a value beyond the calibrated range saturates instead of becoming NaN."""

    def _quantize(
        self, tensor: torch.Tensor, scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if scale is not None:
            limit = self.fp8_max * scale
            tensor = tensor.float().clamp(-limit, limit)
        quantized: tuple[torch.Tensor, torch.Tensor] = super()._quantize(tensor, scale)
        return quantized


class Fp8Cache(QuantizedCache):  # type: ignore[misc]
    """An fp8 cache whose scales come from at least FP8_CALIBRATION_TOKENS tokens; dense until then."""

    def __init__(self, config: Any) -> None:
        super().__init__("fp8", config)
        self.layers: list[Any] = [_SaturatingFp8Layer() for _ in range(config.get_text_config().num_hidden_layers)]
        self._dense: DynamicCache | None = DynamicCache(config=config)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``[batch, kv_heads, tokens, head_dim]`` keys and values; returns all of the layer's."""
        if self._dense is None:
            states: tuple[torch.Tensor, torch.Tensor] = super().update(
                key_states, value_states, layer_idx, *args, **kwargs
            )
            return states
        keys, values = self._dense.update(key_states, value_states, layer_idx, *args, **kwargs)
        if keys.shape[-2] >= FP8_CALIBRATION_TOKENS:
            self._calibrate(layer_idx, keys, values)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens stored in that layer."""
        if self._dense is not None:
            return int(self._dense.get_seq_length(layer_idx))
        return int(super().get_seq_length(layer_idx))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """``(kv_length, kv_offset)`` for the attention mask of a step of ``query_length`` tokens."""
        source: Any = super() if self._dense is None else self._dense
        sizes: tuple[int, int] = source.get_mask_sizes(query_length, layer_idx)
        return sizes

    def _calibrate(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Move one layer to fp8; the last layer of the step ends the dense phase."""
        self.layers[layer_idx].update(keys, values)
        assert self._dense is not None
        dense_layer = self._dense.layers[layer_idx]
        dense_layer.keys = dense_layer.values = None
        if layer_idx == len(self.layers) - 1:
            self._dense = None
