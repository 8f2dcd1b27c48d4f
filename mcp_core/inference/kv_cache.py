"""Key/value caches by kind: one function a kind, each giving a fresh cache for one sequence.

This file does not know about requests or pages; transformers' cache classes do the storing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, QuantizedCache, StaticCache
from transformers.cache_utils import Fp8QuantizedLayer

from mcp_core.recipe import KVKind

__all__ = ["FP8_CALIBRATION_TOKENS", "CacheFactory", "cache_factory"]

# An fp8 scale taken from fewer tokens misjudges the range of the rest (CONTRACTS.md: KL 0.91 against 0.0025).
FP8_CALIBRATION_TOKENS = 64

CacheFactory = Callable[[], Any]


def cache_factory(kind: KVKind, config: Any, max_context: int) -> CacheFactory:
    """A function that gives an empty cache of this kind for one sequence of at most ``max_context`` tokens."""
    return _FACTORIES[kind](config, max_context)


def _dynamic(config: Any, max_context: int) -> CacheFactory:
    return lambda: DynamicCache(config=config)


def _offloaded(config: Any, max_context: int) -> CacheFactory:
    return lambda: DynamicCache(config=config, offloading=True)


def _static(config: Any, max_context: int) -> CacheFactory:
    cache = StaticCache(config=config, max_cache_len=max_context)

    @torch.inference_mode()  # its tensors were made in inference mode and may be changed only there
    def reuse() -> StaticCache:
        cache.reset()
        return cache

    return reuse


def _quantized_fp8(config: Any, max_context: int) -> CacheFactory:
    return lambda: Fp8Cache(config)


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


_FACTORIES: dict[KVKind, Callable[[Any, int], CacheFactory]] = {
    "dynamic": _dynamic,
    "static": _static,
    "quantized-fp8": _quantized_fp8,
    "offloaded": _offloaded,
}
