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
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mcp_core.errors import RecipeError
from mcp_core.inference.fp8 import dequantized, quantized
from mcp_core.recipe import KVKind

__all__ = [
    "DEFAULT_BITS",
    "DEFAULT_WINDOW",
    "CacheFactory",
    "NoCache",
    "cache_factory",
    "extend",
]

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
            return _fp8(config)
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


class _Fp8Layer(DynamicLayer):  # type: ignore[misc]
    """Grows like transformers' own; what it gives back, the newest tokens included, is what fp8 holds of them."""

    is_initialized: bool
    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor
    value_scales: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``[batch, kv_heads, tokens, head_dim]`` keys and values; returns all of the layer's, dense."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.key_scales = _joined((self.keys, self.key_scales), quantized(key_states))
        self.values, self.value_scales = _joined((self.values, self.value_scales), quantized(value_states))
        dtype = key_states.dtype
        return dequantized(self.keys, self.key_scales, dtype), dequantized(self.values, self.value_scales, dtype)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing so far of what the first tokens are like."""
        (self.keys, self.key_scales), (self.values, self.value_scales) = (
            quantized(states[..., :0, :]) for states in (key_states, value_states)
        )
        self.is_initialized = True


_Stored = tuple[torch.Tensor, torch.Tensor]


def _joined(old: _Stored, new: _Stored) -> _Stored:
    """Bytes ``[..., tokens, head_dim]`` and scales ``[..., tokens]``, one after the other."""
    return torch.cat([old[0], new[0]], dim=-2), torch.cat([old[1], new[1]], dim=-1)


def _fp8(config: Any) -> CacheFactory:
    layers = config.get_text_config(decoder=True).num_hidden_layers
    return lambda: Cache(layers=[_Fp8Layer() for _ in range(layers)])
