"""The pool's tensors: what they weigh, and that a host gives memory only to pages that were written."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from mcp_core.inference.paged.attention import PagedCache
from mcp_core.inference.paged.batch import PagedBatch
from mcp_core.inference.paged.kernels import gathered
from mcp_core.serving.process_memory import read_memory

MB = 10**6
CPU = torch.device("cpu")


def resident_bytes() -> int:
    found = read_memory()
    assert found is not None
    return found.resident_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pages_take_memory_once_they_are_written(dtype: torch.dtype) -> None:
    config = LlamaConfig(num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8, hidden_size=512)
    before = resident_bytes()
    pages = 400 * MB // (2 * 4 * 16 * 512 * dtype.itemsize)
    cache = PagedCache(config, pages, 16, dtype, CPU, gathered)
    assert cache.nbytes == pytest.approx(400 * MB, rel=0.01)
    assert resident_bytes() - before < 20 * MB
    assert not cache.keys[0][pages // 2].any()
    for tensor in (*cache.keys, *cache.values):
        tensor[: pages // 2] = 1.0
    assert resident_bytes() - before == pytest.approx(200 * MB, rel=0.15)


@pytest.mark.parametrize("left", [torch.nan, torch.inf])
def test_what_another_request_left_in_a_page_reaches_nobody(left: float) -> None:
    """Of two sequences the shorter one's page has places beyond its end, and so has the padding of its pages."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 8, generator=generator)
    keys, values = (torch.randn(4, 4, 2, 8, generator=generator) for _ in range(2))
    batch = PagedBatch(
        slots=torch.tensor([0]),
        pages=torch.tensor([[1, 0], [2, 3]], dtype=torch.int32),
        lengths=torch.tensor([2, 7], dtype=torch.int32),
        starts=torch.tensor([0, 1, 2], dtype=torch.int32),
        longest_query=1,
        longest_key=7,
    )
    clean = gathered(query, keys, values, batch, 0.5)
    for tensor in (keys, values):
        tensor[1, 2:] = tensor[0] = tensor[3, 3:] = left
    torch.testing.assert_close(gathered(query, keys, values, batch, 0.5), clean)
