"""Paged attention in Triton: one kernel that reads keys and values from their pages, for any mix of lengths.

Flash decoding: a sequence's past is cut into splits that are computed side by side and merged, so that one long
sequence fills the device too. Sources: FlashAttention (arXiv 2205.14135), Flash-Decoding
(pytorch.org/blog/flash-decoding), PagedAttention (arXiv 2309.06180); that a block of queries finds its sequence by
itself is vLLM's (triton_unified_attention.py, Apache 2.0). Heavy, CUDA only. This file does not know layers or
requests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mcp_core.inference.paged.batch import PagedBatch

__all__ = ["keep", "triton_paged"]

_KEYS_BLOCK = 64
# Of many queries; measured on an H100 for 8,192 tokens of 28 prompts: 246 us against 261.
_KEYS_BLOCK_OF_PROMPTS = 32
# A split shorter than this costs more to merge than it saves.
_SHORTEST_SPLIT = 256
_MOST_SPLITS = 16


# The longest sequence's pages, and how many there are: a kernel of its own for every multiple of 16 would be made
# while requests wait.
@triton.jit(do_not_specialize=["pages_stride", "sequences"])  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def] # Triton's own types, not Python's
    query,
    keys,
    values,
    pages,
    lengths,
    starts,
    partial,
    weights,
    scale,
    pages_stride,
    sequences,
    HEADS: tl.constexpr,  # noqa: N803
    KV_HEADS: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
    HEAD_DIM: tl.constexpr,  # noqa: N803
    PAGE: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    QUERIES: tl.constexpr,  # noqa: N803
    KEYS_BLOCK: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
    DECODING: tl.constexpr,  # noqa: N803
):
    """Program (block of queries, kv head x split); ROWS = QUERIES x GROUP rows share a kv head's keys.

    A sequence's blocks begin at that of its first token, and one further for each sequence before it: room for
    every last one that is not full. Where each has one token (DECODING) a program's sequence is its own number.
    """
    program = tl.program_id(0)
    kv_head = tl.program_id(1) // SPLITS
    split = tl.program_id(1) % SPLITS
    sequence = program
    if not DECODING:
        low: tl.int32 = 0
        high = sequences
        while low < high:
            middle = (low + high) // 2
            if tl.load(starts + middle) // QUERIES + middle <= program:
                low = middle + 1
            else:
                high = middle
        sequence = low - 1
    first = tl.load(starts + sequence)
    count = tl.load(starts + sequence + 1) - first
    block = 0
    if not DECODING:
        block = (program - first // QUERIES - sequence) * QUERIES
    if block >= count:
        return
    length = tl.load(lengths + sequence)
    row = tl.arange(0, ROWS)
    token = block + row // GROUP
    head = kv_head * GROUP + row % GROUP
    real = (token < count) & (row < QUERIES * GROUP)
    dim = tl.arange(0, HEAD_DIM)
    at = ((first + token) * HEADS + head)[:, None] * HEAD_DIM + dim[None, :]
    q = tl.load(query + at, mask=real[:, None], other=0.0)
    position = length - count + token  # of each query in its sequence
    # The last key that any of these queries sees: none where there are fewer keys than queries.
    end = tl.maximum(tl.minimum(length, length - count + block + QUERIES), 0)
    span = tl.cdiv(tl.cdiv(end, SPLITS), KEYS_BLOCK) * KEYS_BLOCK
    begin = split * span
    stop = tl.minimum(begin + span, end)
    best = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for start in range(begin, stop, KEYS_BLOCK):
        key_at = start + tl.arange(0, KEYS_BLOCK)
        there = key_at < stop
        page = tl.load(pages + sequence * pages_stride + key_at // PAGE, mask=there, other=0).to(tl.int64)
        slot = (page * PAGE + key_at % PAGE) * KV_HEADS + kv_head
        k = tl.load(keys + slot[:, None] * HEAD_DIM + dim[None, :], mask=there[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k)).to(tl.float32) * scale
        scores = tl.where(there[None, :] & (key_at[None, :] <= position[:, None]), scores, -1e30)
        higher = tl.maximum(best, tl.max(scores, 1))
        shrink = tl.exp(best - higher)
        share = tl.exp(scores - higher[:, None])
        share = tl.where(scores > -1e29, share, 0.0)
        v = tl.load(values + slot[:, None] * HEAD_DIM + dim[None, :], mask=there[:, None], other=0.0)
        mixed = mixed * shrink[:, None] + tl.dot(share.to(v.dtype), v).to(tl.float32)
        total = total * shrink + tl.sum(share, 1)
        best = higher
    out = ((first + token) * HEADS + head) * SPLITS + split
    mixed = mixed / tl.maximum(total, 1e-30)[:, None]
    tl.store(
        partial + out[:, None] * HEAD_DIM + dim[None, :], mixed.to(partial.dtype.element_ty), mask=real[:, None]
    )
    if SPLITS > 1:
        tl.store(weights + out, tl.where(total > 0, best + tl.log(tl.maximum(total, 1e-30)), -1e30), mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def _merge(  # type: ignore[no-untyped-def]
    partial,
    weights,
    attended,
    HEAD_DIM: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
):
    """Program: one token and head. The splits' results by their softmax weights (log-sum-exp)."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    dim = tl.arange(0, HEAD_DIM)
    log_total = tl.load(weights + row * SPLITS + split)
    share = tl.exp(log_total - tl.max(log_total, 0))
    parts = tl.load(partial + (row * SPLITS + split)[:, None] * HEAD_DIM + dim[None, :])
    result = tl.sum(parts * share[:, None], 0) / tl.sum(share, 0)
    tl.store(attended + row * HEAD_DIM + dim, result.to(attended.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def _keep(  # type: ignore[no-untyped-def]
    new_keys,
    new_values,
    slots,
    keys,
    values,
    key_token,
    key_head,
    value_token,
    value_head,
    KV_HEADS: tl.constexpr,  # noqa: N803
    HEAD_DIM: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Program: one token's keys and values to its slot."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    head, dim, real = at // HEAD_DIM, at % HEAD_DIM, at < KV_HEADS * HEAD_DIM
    target = tl.load(slots + token) * KV_HEADS * HEAD_DIM + at
    key = tl.load(new_keys + token * key_token + head * key_head + dim, mask=real)
    value = tl.load(new_values + token * value_token + head * value_head + dim, mask=real)
    tl.store(keys + target, key.to(keys.dtype.element_ty), mask=real)
    tl.store(values + target, value.to(values.dtype.element_ty), mask=real)


def keep(
    keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    """One launch for both: ``key`` and ``value`` ``[t, kv_heads, head_dim]`` to ``slots [t]`` of the pages."""
    tokens, kv_heads, head_dim = key.shape
    key, value = (each if each.stride(2) == 1 else each.contiguous() for each in (key, value))
    _keep[(tokens,)](
        key,
        value,
        slots,
        keys,
        values,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK=triton.next_power_of_2(kv_heads * head_dim),
        num_warps=4,
    )


def triton_paged(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: PagedBatch, scale: float
) -> torch.Tensor:
    """As ``kernels.Kernel``; head_dim is a power of two from 16 to 256."""
    tokens, heads, head_dim = query.shape
    page_size, kv_heads = keys.shape[1:3]
    group, sequences = heads // kv_heads, batch.lengths.shape[0]
    decoding = batch.longest_query == 1
    queries = 1 if decoding else max(1, 64 // group)
    rows = max(16, triton.next_power_of_2(queries * group))
    blocks = sequences if decoding else tokens // queries + min(sequences, tokens)
    splits = _splits(batch, blocks * kv_heads, query.device)
    query = query.contiguous()
    attended = torch.empty_like(query)
    partial = attended if splits == 1 else query.new_empty((tokens, heads, splits, head_dim), dtype=torch.float32)
    weights = attended if splits == 1 else query.new_empty((tokens, heads, splits), dtype=torch.float32)
    _attend[blocks, kv_heads * splits](
        query,
        keys,
        values,
        batch.pages,
        batch.lengths,
        batch.starts,
        partial,
        weights,
        scale,
        batch.pages.stride(0),
        sequences,
        HEADS=heads,
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        PAGE=page_size,
        ROWS=rows,
        QUERIES=queries,
        KEYS_BLOCK=_KEYS_BLOCK if decoding else _KEYS_BLOCK_OF_PROMPTS,
        SPLITS=splits,
        DECODING=decoding,
        num_warps=4,
    )
    if splits > 1:
        _merge[(tokens * heads,)](partial, weights, attended, HEAD_DIM=head_dim, SPLITS=splits, num_warps=2)
    return attended


def _splits(batch: PagedBatch, programs: int, device: torch.device) -> int:
    """Enough to fill the device, none shorter than pays: for a few sequences with a long past."""
    wanted = 2 * torch.cuda.get_device_properties(device).multi_processor_count / programs
    longest = batch.longest_key / _SHORTEST_SPLIT
    splits = 1
    while splits < min(wanted, longest, _MOST_SPLITS):
        splits *= 2
    return splits
