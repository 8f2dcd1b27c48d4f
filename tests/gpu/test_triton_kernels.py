"""The kernels over pages against torch's own attention in fp32, and what they keep against plain indexing."""

from __future__ import annotations

import random

import pytest
import torch

from mcp_core.inference.paged.batch import PagedBatch
from mcp_core.inference.paged.kernels import gathered

pytestmark = pytest.mark.gpu

PAGE, PAGES = 16, 400
# tokens of each sequence in this step, and tokens of it in the pool after it
CASES = {
    "decode": ([1] * 9, [1, 15, 16, 17, 64, 65, 300, 511, 900]),
    "one long sequence": ([1], [2000]),
    "prompts": ([3, 64, 65, 200], [3, 64, 65, 200]),
    "chunks of prompts beside decoding": ([1, 40, 1, 100], [70, 300, 16, 100]),
    "the rest of a long prompt": ([30], [2000]),
    "the rests of two": ([5, 90], [1500, 1900]),
    "padding at the end": ([1, 40, 1, 100, 50], [70, 300, 16, 100, 1]),
    "more padding than keys, and sequences without tokens": ([3, 300, 0, 0], [64, 1, 1, 1]),
}


def batch_of(counts: list[int], lengths: list[int]) -> PagedBatch:
    draw = random.Random(3)
    free = draw.sample(range(1, PAGES), PAGES - 1)
    width = -(-max(lengths) // PAGE)
    pages = torch.zeros((len(counts), width), dtype=torch.int32)
    for row, length in zip(pages, lengths, strict=True):
        used = -(-length // PAGE)
        row[:used] = torch.tensor([free.pop() for _ in range(used)])
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    none = torch.zeros(0, dtype=torch.long)
    tensors = (each.cuda() for each in (none, pages, torch.tensor(lengths, dtype=torch.int32), starts))
    return PagedBatch(*tensors, longest_query=max(counts), longest_key=max(lengths))


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(8, 8, 128), (16, 4, 64), (12, 4, 128), (32, 8, 128)])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_attention_is_that_of_fp32(heads, kv_heads, head_dim, case):
    from mcp_core.inference.paged.triton_kernels import triton_paged  # Triton comes with torch for CUDA

    torch.manual_seed(0)
    batch = batch_of(*case)
    keys, values = (torch.randn(PAGES, PAGE, kv_heads, head_dim, device="cuda").bfloat16() for _ in range(2))
    query = torch.randn(int(batch.starts[-1]), heads, head_dim, device="cuda").bfloat16()
    scale = head_dim**-0.5
    expected = gathered(query.float(), keys.float(), values.float(), batch, scale)
    found = triton_paged(query, keys, values, batch, scale).float()
    for first, count, length in zip(batch.starts.tolist(), *case, strict=False):
        blind = slice(first, first + max(0, count - length))  # no key is visible to them
        assert found[blind].eq(0).all()
        expected[blind] = 0
    assert (found - expected).abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(8, 128), (3, 64), (4, 80)])
def test_keys_and_values_are_kept_in_their_slots(dtype, kv_heads, head_dim):
    from mcp_core.inference.paged.triton_kernels import keep

    keys, values = (torch.zeros(PAGES, PAGE, kv_heads, head_dim, device="cuda", dtype=dtype) for _ in range(2))
    slots = torch.randperm(PAGES * PAGE, device="cuda")[:77]
    parts = [torch.randn(1, kv_heads, 77, head_dim, device="cuda", dtype=dtype) for _ in range(2)]
    key, value = (part[0].transpose(0, 1) for part in parts)  # as a model gives them: not contiguous
    keep(keys, values, slots, key, value)
    for pool, part in ((keys, key), (values, value)):
        expected = torch.zeros_like(pool)
        expected.flatten(0, 1)[slots] = part
        assert torch.equal(pool, expected)
