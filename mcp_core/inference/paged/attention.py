"""Paged attention for an unmodified transformers model: keys and values go to the pool and are read from its pages.

transformers calls the function registered here for every layer and hands through what the model was called with.
This file does not know requests, or which kernel is best where (``kernels.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

from mcp_core.errors import RecipeError
from mcp_core.inference.paged.batch import PagedBatch
from mcp_core.inference.paged.kernels import Kernel

__all__ = ["NAME", "PagedCache", "head_dim_of", "register"]

# transformers makes no mask for an implementation that it has no mask function for.
NAME = "mcp_paged"


class PagedCache:
    """Keys and values of a model's layers in pages: ``[pages, page_size, kv_heads, head_dim]`` a layer and kind."""

    def __init__(
        self, config: Any, pages: int, page_size: int, dtype: torch.dtype, device: torch.device, kernel: Kernel
    ) -> None:
        text = config.get_text_config(decoder=True)
        shape = (pages, page_size, text.num_key_value_heads, head_dim_of(config))
        self.page_size = page_size
        self.kernel = kernel
        self.keys = [_zeros(shape, dtype, device) for _ in range(text.num_hidden_layers)]
        self.values = [_zeros(shape, dtype, device) for _ in range(text.num_hidden_layers)]

    @property
    def nbytes(self) -> int:
        """Bytes of the pool."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros: padded rows read page 0, and what is not a number there would spread.

    On a host they take memory only where something was written: torch's own zeros are written at once.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    untouched = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(untouched).view(dtype).view(shape)


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
    keys, values = cache.keys[module.layer_idx], cache.values[module.layer_idx]
    keys.flatten(0, 1).index_copy_(0, batch.slots, key[0].transpose(0, 1).to(keys.dtype))
    values.flatten(0, 1).index_copy_(0, batch.slots, value[0].transpose(0, 1).to(values.dtype))
    scale = scaling if scaling is not None else float(query.shape[-1]) ** -0.5
    attended = cache.kernel(query[0].transpose(0, 1), keys, values, batch, scale)
    return attended[None], None


# What some models ask of attention beside scores, a causal mask and a scale; left out, their text would be wrong.
_BEYOND_PLAIN = ("sliding_window", "softcap", "s_aux", "position_bias")


def _require_plain(paged: object, others: Mapping[str, Any]) -> None:
    asked = [name for name in _BEYOND_PLAIN if others.get(name) is not None]
    if paged is None:
        asked = ["arguments that do not reach its attention"]
    if asked:
        raise RecipeError(
            f"batching.mode: this model has {', '.join(asked)}; pages hold plain causal attention only.",
            "Set batching.mode to static or off, and prefix_cache and compile to false.",
        )
