"""Products of a few tokens with int8 rows in Triton: a weight is read as it is stored and unpacked in registers.

torchao writes such weights out dense before it multiplies: 26 ms a recorded step of a 7B model on an H100, where
bf16 takes 8. Beside gemlite's kernels, which are as fast for one token and slower for 4 and 16: docs/h100.md.
Weights are the left operand, as their tile is then unpacked in registers. Heavy, CUDA only. This file does not know
layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["product"]

# Measured on an H100 with [12288, 4096]: (rows, columns, warps) of a tile; 2.27 TB/s.
_VECTOR = (2, 2048, 4)
# Programs that fill the device: fewer and each row's columns are split among several.
_PROGRAMS = 1536
_MOST_SPLITS = 8
_SHORTEST_SPLIT = 512
_COLUMNS = 128


@triton.jit  # type: ignore[untyped-decorator]
def _unpacked_vector(  # type: ignore[no-untyped-def] # Triton's own types, not Python's
    token,
    codes,
    scales,
    out,
    rows,
    columns,
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """Program: ROWS rows times one token. Sums are of fp32 and added up at the end."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, columns, COLUMNS):
        at = start + column
        there = at < columns
        x = tl.load(token + at, mask=there, other=0.0).to(tl.float32)
        place = row.to(tl.int64)[:, None] * columns + at[None, :]
        code = tl.load(codes + place, mask=there[None, :] & (row < rows)[:, None], other=0)
        sums += code.to(tl.float32) * x[None, :]
    scale = tl.load(scales + row, mask=row < rows, other=0.0).to(tl.float32)
    tl.store(out + row, (tl.sum(sums, 1) * scale).to(out.dtype.element_ty), mask=row < rows)


# The tokens: else another kernel for multiples of 16, and one of the two is not made before it serves.
@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]
def _unpacked_rows(  # type: ignore[no-untyped-def]
    tokens,
    codes,
    scales,
    out,
    count,
    rows,
    columns,
    span,
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    TOKENS: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
):
    """Program (block of rows, split of the columns, block of tokens)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    token = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, TOKENS], tl.float32)
    first = split * span
    last = tl.minimum(first + span, columns)
    for start in range(first, last, COLUMNS):
        at = start + column
        there = at < last
        place = row.to(tl.int64)[:, None] * columns + at[None, :]
        code = tl.load(codes + place, mask=there[None, :] & (row < rows)[:, None], other=0)
        wanted = there[:, None] & (token < count)[None, :]
        x = tl.load(tokens + token[None, :] * columns + at[:, None], mask=wanted, other=0.0)
        sums = tl.dot(code.to(x.dtype), x, sums)
    kept = (row < rows)[:, None] & (token < count)[None, :]
    if SPLITS == 1:
        scale = tl.load(scales + row, mask=row < rows, other=0.0).to(tl.float32)
        target = out + token[None, :] * rows + row[:, None]
        tl.store(target, (sums * scale[:, None]).to(out.dtype.element_ty), mask=kept)
    else:
        tl.store(out + (split * count + token[None, :]) * rows + row[:, None], sums, mask=kept)


@triton.jit  # type: ignore[untyped-decorator]
def _unpacked_sums(  # type: ignore[no-untyped-def]
    partial,
    scales,
    out,
    size,
    rows,
    SPLITS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Program: a block of results, the splits added up and scaled."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial + split * size + at, mask=there, other=0.0)
    total *= tl.load(scales + at % rows, mask=there, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=there)


def product(tokens: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``tokens [t, in]`` times ``codes [out, in]`` (int8) times ``scales [out]``: ``[t, out]`` in their dtype.

    ``t`` is 1 or more; all of it contiguous.
    """
    rows, columns = codes.shape
    out = tokens.new_empty((tokens.shape[0], rows))
    if tokens.shape[0] > 1:
        return _of_many(tokens, codes, scales, out)
    size, width, warps = _VECTOR
    grid = (triton.cdiv(rows, size),)
    _unpacked_vector[grid](tokens, codes, scales, out, rows, columns, ROWS=size, COLUMNS=width, num_warps=warps)
    return out


def _of_many(tokens: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    (rows, columns), count = codes.shape, tokens.shape[0]
    tile = 32 if count <= 32 else 64
    block = min(64, max(16, triton.next_power_of_2(count)))
    splits = _splits(triton.cdiv(rows, tile) * triton.cdiv(count, block), columns)
    span = triton.cdiv(triton.cdiv(columns, splits), _COLUMNS) * _COLUMNS
    target = out if splits == 1 else out.new_empty((splits, *out.shape), dtype=torch.float32)
    _unpacked_rows[(triton.cdiv(rows, tile), splits, triton.cdiv(count, block))](
        tokens,
        codes,
        scales,
        target,
        count,
        rows,
        columns,
        span,
        ROWS=tile,
        COLUMNS=_COLUMNS,
        TOKENS=block,
        SPLITS=splits,
        num_warps=4,
        num_stages=5 if tile == 32 else 3,
    )
    if splits > 1:
        _unpacked_sums[(triton.cdiv(out.numel(), 1024),)](
            target, scales, out, out.numel(), rows, SPLITS=splits, BLOCK=1024, num_warps=4
        )
    return out


def _splits(programs: int, columns: int) -> int:
    splits = 1
    while splits < min(_MOST_SPLITS, _PROGRAMS / programs, columns / _SHORTEST_SPLIT):
        splits *= 2
    return splits
