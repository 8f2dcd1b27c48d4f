"""Paged attention for an unmodified transformers model: keys and values go to the pool and are read from its pages.

transformers calls the function registered here for every layer and hands through what the model was called with.
This file does not know requests, or which kernel is best where (``kernels.py``).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from transformers import AttentionInterface

from mcp_core.errors import RecipeError
from mcp_core.inference.fp8 import BYTES, dequantized, quantized
from mcp_core.inference.paged.batch import PagedBatch
from mcp_core.inference.paged.kernels import Kernel

__all__ = ["NAME", "PagedCache", "head_dim_of", "register"]

# transformers makes no mask for an implementation that it has no mask function for.
NAME = "mcp_paged"


class PagedCache:
    """Keys and values of a model's layers in pages: ``[pages, page_size, kv_heads, head_dim]`` a layer and kind.

    In ``fp8`` they are bytes with scales ``[pages, page_size, kv_heads]``, and made dense for a kernel to read.
    """

    def __init__(
        self,
        config: Any,
        pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        kernel: Kernel,
        *,
        fp8: bool = False,
    ) -> None:
        text = config.get_text_config(decoder=True)
        shape = (pages, page_size, text.num_key_value_heads, head_dim_of(config))
        self.page_size = page_size
        self.device = device
        self.key = next(key for key in count() if key not in _CACHES)  # small: part of what a compiler keeps
        _CACHES[self.key] = self
        self._kernel = kernel
        stored, layers = BYTES if fp8 else dtype, range(text.num_hidden_layers)
        self.keys, self.values = ([_zeros(shape, stored, device) for _ in layers] for _ in range(2))
        scaled = layers if fp8 else range(0)
        self.key_scales, self.value_scales = (
            [_zeros(shape[:-1], torch.float16, device) for _ in scaled] for _ in range(2)
        )

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that a page has a part in; the first axis counts pages."""
        return (*self.keys, *self.values, *self.key_scales, *self.value_scales)

    @property
    def nbytes(self) -> int:
        """Bytes of the pool."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers."""
        return self.nbytes // self.keys[0].shape[0]

    def close(self) -> None:
        """Give the pool's memory and its number back."""
        self.keys, self.values, self.key_scales, self.value_scales = [], [], [], []
        _CACHES.pop(self.key, None)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        batch: PagedBatch,
        scale: float,
    ) -> torch.Tensor:
        """Keep the step's keys and values ``[t, kv_heads, head_dim]``; the attention of its tokens over all."""
        keys, values = self.keys[layer], self.values[layer]
        if self.key_scales:
            return self._attend_fp8(layer, query, (key, value), batch, scale)
        _keep(keys, values, batch.slots, key, value)
        return self._kernel(query, keys, values, batch, scale)

    def _attend_fp8(
        self,
        layer: int,
        query: torch.Tensor,
        new: tuple[torch.Tensor, torch.Tensor],
        batch: PagedBatch,
        scale: float,
    ) -> torch.Tensor:
        """The pages of these sequences made dense, one after the other, and attended to as pages are."""
        used = batch.pages[:, : -(-batch.longest_key // self.page_size)]
        dense = []
        stores = (self.keys[layer], self.key_scales[layer]), (self.values[layer], self.value_scales[layer])
        for (stored, scales), values in zip(stores, new, strict=True):
            for place, part in zip((stored, scales), quantized(values), strict=True):
                _put(place, batch.slots, part)
            dense.append(dequantized(stored[used], scales[used], values.dtype).flatten(0, 1))
        renumbered = torch.arange(used.numel(), dtype=used.dtype, device=used.device).view(used.shape)
        return self._kernel(query, dense[0], dense[1], batch._replace(pages=renumbered), scale)


# Pools that are alive, by their number.
_CACHES: WeakValueDictionary[int, PagedCache] = WeakValueDictionary()


def _keep(
    keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    """Both at their places: in one launch where a device counts launches."""
    if keys.is_cuda:
        from mcp_core.inference.paged.triton_kernels import keep

        keep(keys, values, slots, key, value)
    else:
        _put(keys, slots, key.to(keys.dtype))
        _put(values, slots, value.to(values.dtype))


def _put(pool: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> None:
    """The tokens' ``values`` at their places, counted in tokens."""
    pool.flatten(0, 1).index_copy_(0, slots, values)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros: padded rows read page 0, and what is not a number there would spread.

    On a host they take memory only where something was written, so they are mapped for themselves: torch's own
    zeros are written at once, and so are numpy's where the heap has a freed block of that size.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    mapped = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, **_PRIVATE)
    return torch.frombuffer(mapped, dtype=dtype).view(shape)


# Shared memory is the default, and is not a process's own.
_PRIVATE: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def head_dim_of(config: Any) -> int:
    """Width of one head."""
    text = config.get_text_config(decoder=True)
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def register() -> None:
    """Make ``attn_implementation="mcp_paged"`` known to transformers; again is harmless."""
    AttentionInterface.register(NAME, _attend)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    paged: tuple[PagedCache, PagedBatch] | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """``query [1, heads, t, head_dim]``, ``key`` and ``value`` alike with kv_heads.

    Returns ``[1, t, heads, head_dim]``. Raises RecipeError for attention that pages cannot compute.
    """
    _require_plain(paged, others)
    assert paged is not None
    cache, batch = paged
    scale = scaling if scaling is not None else float(query.shape[-1]) ** -0.5
    parts = (query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1))
    if torch.compiler.is_compiling():
        tensors = (batch.slots, batch.pages, batch.lengths, batch.starts)
        attended = _opaque(
            *parts, *tensors, batch.longest_query, batch.longest_key, scale, module.layer_idx, cache.key
        )
    else:
        attended = cache.attend(module.layer_idx, *parts, batch, scale)
    return attended[None], None


@torch.library.custom_op("mcp::paged_attention", mutates_args=())
def _opaque(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
    pages: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor,
    longest_query: int,
    longest_key: int,
    scale: float,
    layer: int,
    cache: int,
) -> torch.Tensor:
    """``PagedCache.attend`` as one operator that torch.compile leaves as it is.

    The pool is found by its number and is no argument: what is changed in it only this operator reads, in the order
    of the layers, so a compiler that moves nothing across its results needs not know.
    """
    if not lengths.is_cuda:  # a host may look, and copies only what there is
        longest_key = int(lengths.max())
    batch = PagedBatch(slots, pages, lengths, starts, longest_query, longest_key)
    return _CACHES[cache].attend(layer, query, key, value, batch, scale).contiguous()


@_opaque.register_fake
def _(query: torch.Tensor, *_others: object) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


# What some models ask of attention beside scores, a causal mask and a scale; left out, their text would be wrong.
_BEYOND_PLAIN = ("sliding_window", "softcap", "s_aux", "position_bias")


def _require_plain(paged: object, others: Mapping[str, Any]) -> None:
    asked = [name for name in _BEYOND_PLAIN if others.get(name) is not None]
    if paged is None:
        asked = ["arguments that do not reach its attention"]
    if asked:
        raise RecipeError(
            f"batching.mode: this model has {', '.join(asked)}; pages hold plain causal attention only.",
            "Set batching.mode to static or off, prefix_cache to false and compile to off.",
        )
