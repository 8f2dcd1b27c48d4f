"""Kernels of paged attention: one function each, and which one a machine uses.

Each takes ``query [t, heads, head_dim]``, a layer's ``keys`` and ``values`` ``[pages, page_size, kv_heads,
head_dim]`` that already hold the step's own tokens, the batch and the scale; it returns ``[t, heads, head_dim]``. A
token sees the tokens of its sequence up to itself. This file does not know layers or requests.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from mcp_core.inference.paged.batch import PagedBatch
from mcp_core.recipe import Attention

__all__ = ["Kernel", "flash3", "gathered", "kernel_for"]


_FLASH3 = "flash_attention_3 over pages"
# Triton's blocks are powers of two.
_TRITON_HEAD_DIMS = (16, 32, 64, 128, 256)


class Kernel(Protocol):
    """One way to compute it."""

    def __call__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: PagedBatch, scale: float, /
    ) -> torch.Tensor:
        """Attention of every token over its sequence."""


def kernel_for(device: torch.device, dtype: torch.dtype, head_dim: int, attention: Attention) -> tuple[str, Kernel]:
    """The kernel for a Recipe's ``attention`` on that device, with its name. Ours against FA3: docs/h100.md."""
    own: Kernel | None = None
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and head_dim in _TRITON_HEAD_DIMS:
        from mcp_core.inference.paged.triton_kernels import triton_paged

        own = triton_paged
    if attention == "flash_attention_3":
        return (_FLASH3, flash3) if own is None else (f"{_FLASH3}, triton for decoding", _by_step(flash3, own))
    return ("sdpa over gathered pages", gathered) if own is None else ("triton over pages", own)


def _by_step(of_prompts: Kernel, of_decoding: Kernel) -> Kernel:
    """The one where prompts take part, the other where each sequence has one token."""

    def attend(
        query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: PagedBatch, scale: float
    ) -> torch.Tensor:
        kernel = of_decoding if batch.longest_query == 1 else of_prompts
        return kernel(query, keys, values, batch, scale)

    return attend


def flash3(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: PagedBatch, scale: float
) -> torch.Tensor:
    """FlashAttention 3 on the pages themselves (Hopper)."""
    from flash_attn_interface import flash_attn_with_kvcache

    attended: torch.Tensor = flash_attn_with_kvcache(
        query,
        keys,
        values,
        cache_seqlens=batch.lengths,
        page_table=batch.pages,
        cu_seqlens_q=batch.starts,
        max_seqlen_q=batch.longest_query,
        softmax_scale=scale,
        causal=True,
    )
    return attended


def gathered(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: PagedBatch, scale: float
) -> torch.Tensor:
    """torch's own attention over a copy of the pages: for CPUs, and fp32 anywhere."""
    if batch.longest_query == 1:
        return _one_token_each(query, keys, values, batch, scale)
    ends = batch.starts.tolist()
    lengths = batch.lengths.tolist()
    rows = []
    for index, length in enumerate(lengths):
        if ends[index] == ends[index + 1]:
            continue
        pages = batch.pages[index, : -(-length // keys.shape[1])]
        rows.append(_one_sequence(query[ends[index] : ends[index + 1]], keys, values, pages, length, scale))
    return torch.cat(rows)


def _one_token_each(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: PagedBatch, scale: float
) -> torch.Tensor:
    """All sequences at once, padded to the longest."""
    used = batch.pages[:, : -(-batch.longest_key // keys.shape[1])]
    visible = torch.arange(used.shape[1] * keys.shape[1], device=query.device) < batch.lengths[:, None]
    # Copies: what another request left in them may be no number, and what is computed with that is none either.
    unseen = ~visible[:, :, None, None]
    own_keys, own_values = (each[used].flatten(1, 2).masked_fill_(unseen, 0) for each in (keys, values))
    attended = scaled_dot_product_attention(
        query[:, :, None],
        own_keys.transpose(1, 2),
        own_values.transpose(1, 2),
        attn_mask=visible[:, None, None],
        scale=scale,
        enable_gqa=True,
    )
    return attended[:, :, 0]


def _one_sequence(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, pages: torch.Tensor, length: int, scale: float
) -> torch.Tensor:
    """``query [q, heads, head_dim]``: the last q of the sequence's ``length`` tokens."""
    count = query.shape[0]
    mask = None
    if 1 < count < length:
        at = torch.arange(length - count, length, device=query.device)
        mask = torch.arange(length, device=query.device) <= at[:, None]
    attended = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys[pages].flatten(0, 1)[:length].transpose(0, 1)[None],
        values[pages].flatten(0, 1)[:length].transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=count == length and count > 1,
        scale=scale,
        enable_gqa=True,
    )
    return attended[0].transpose(0, 1)
