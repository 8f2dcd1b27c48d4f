"""Paged attention for an unmodified transformers model: keys and values go to the pool and are read from its pages.

transformers calls the function registered here for every layer and hands through what the model was called with.
This file does not know requests, or which kernel is best where (``kernels.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from mcp_core.inference.paged.batch import PagedBatch
from mcp_core.inference.paged.kernels import Kernel

__all__ = ["NAME", "PagedCache", "register"]

# transformers makes no mask for an implementation that it has no mask function for.
NAME = "mcp_paged"


class PagedCache:
    """Keys and values of a model's layers in pages: ``[pages, page_size, kv_heads, head_dim]`` a layer and kind."""

    def __init__(
        self, config: Any, pages: int, page_size: int, dtype: torch.dtype, device: torch.device, kernel: Kernel
    ) -> None:
        text = config.get_text_config(decoder=True)
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        shape = (pages, page_size, text.num_key_value_heads, head_dim)
        self.page_size = page_size
        self.kernel = kernel
        # Zeros: padded rows read page 0, and what is not a number there would spread.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(text.num_hidden_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(text.num_hidden_layers)]

    @property
    def nbytes(self) -> int:
        """Bytes of the pool."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


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
    paged: tuple[PagedCache, PagedBatch],
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """``query [1, heads, t, head_dim]``, ``key`` and ``value`` alike with kv_heads.

    Returns ``[1, t, heads, head_dim]``.
    """
    cache, batch = paged
    keys, values = cache.keys[module.layer_idx], cache.values[module.layer_idx]
    keys.flatten(0, 1).index_copy_(0, batch.slots, key[0].transpose(0, 1).to(keys.dtype))
    values.flatten(0, 1).index_copy_(0, batch.slots, value[0].transpose(0, 1).to(values.dtype))
    scale = scaling if scaling is not None else float(query.shape[-1]) ** -0.5
    attended = cache.kernel(query[0].transpose(0, 1), keys, values, batch, scale)
    return attended[None], None
