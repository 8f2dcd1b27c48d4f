"""Kernels alone on an NVIDIA device, as recorded launches: int8 products, attention over pages, and their peers.

``python tests/bench/kernels_gpu.py``: a table in us, the best of five replays. Weights and pools are many copies,
so that none is read from a cache. gemlite and FlashAttention 3 take part where they are installed, gemlite with the
settings that come with it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from mcp_core.inference.int8_kernels import product
from mcp_core.inference.paged.batch import PagedBatch
from mcp_core.inference.paged.kernels import Kernel, flash3
from mcp_core.inference.paged.triton_kernels import triton_paged

# Of Llama-2-7B with joined projections: query, key and value; output; gate and up; down.
SHAPES = {"qkv": (12288, 4096), "o": (4096, 4096), "gate, up": (22016, 4096), "down": (4096, 11008)}
TOKENS = (1, 4, 16, 64, 256)
# More than the 50 MB that an H100 keeps.
APART_BYTES = 400e6
PAGE, HEAD_DIM = 16, 128


def microseconds(call: Callable[[Any], object], each: Sequence[Any]) -> float:
    """A call, on average over ``each``; all launched together as a graph."""
    for one in each[:2]:
        call(one)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call(one) for one in each]
    times = []
    for _ in range(6):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        torch.cuda.synchronize()
        times.append(began.elapsed_time(ended) * 1e3 / len(each))
    del kept
    return min(times[1:])


def say(case: str, kernel: str, call: Callable[[Any], object], each: Sequence[Any], read_bytes: float) -> None:
    """A row, or why there is none."""
    if not each:
        return
    try:
        took_us = microseconds(call, each)
    except (ImportError, RuntimeError) as error:  # a peer that is not there, or cannot do this
        print(f"{case:34} {kernel:18} {type(error).__name__}: {str(error)[:80]}", flush=True)
        return
    print(f"{case:34} {kernel:18} {took_us:9.1f} us  {read_bytes / took_us / 1e3:7.0f} GB/s", flush=True)


def products() -> None:
    for name, (rows, columns) in SHAPES.items():
        copies, size = max(4, int(APART_BYTES / (rows * columns))), rows * columns
        codes = [torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device="cuda") for _ in range(copies)]
        dense = [torch.randn(rows, columns, device="cuda").bfloat16() for _ in range(max(3, copies // 2))]
        scales = torch.rand(rows, device="cuda") / 1000
        others = list(gemlite_layers(codes, scales))
        for tokens in TOKENS:
            x, case = torch.randn(tokens, columns, device="cuda").bfloat16(), f"{name} {rows} x {columns}, {tokens}"
            say(case, "int8, own", partial(product, x, scales=scales), codes, size)
            say(case, "int8, gemlite", partial(applied, x=x), others, size)
            say(case, "bf16, cuBLAS", partial(torch.nn.functional.linear, x), dense, 2 * size)


def applied(layer: Any, x: torch.Tensor) -> object:
    return layer(x)


def gemlite_layers(codes: Sequence[torch.Tensor], scales: torch.Tensor) -> Iterator[Any]:
    try:
        from gemlite.helper import A16W8_INT8
    except ImportError:
        return
    for each in codes:
        make = A16W8_INT8(device="cuda", dtype=torch.bfloat16)
        yield make.from_weights(each.clone(), scales=scales[:, None].bfloat16())


def attention() -> None:
    draw = random.Random(1)
    decoding = [draw.randint(64, 512) + 64 for _ in range(256)]
    prompts = [draw.randint(64, 512) for _ in range(28)]
    for kv_heads in (32, 8):
        attend(f"256 decode, {kv_heads} kv heads", kv_heads, decoding, [1] * 256)
        attend(f"28 prompts, {kv_heads} kv heads", kv_heads, prompts, prompts)
        attend(f"32 tokens after 8,192, {kv_heads} kv heads", kv_heads, [8224], [32])


def attend(case: str, kv_heads: int, lengths: list[int], counts: list[int]) -> None:
    batch, pages = pages_of(lengths, counts)
    shape = (pages, PAGE, kv_heads, HEAD_DIM)
    pools = [[torch.randn(shape, device="cuda").bfloat16() for _ in range(2)] for _ in range(4)]
    query = torch.randn(sum(counts), 32, HEAD_DIM, device="cuda").bfloat16()
    read_bytes = 2 * 2 * sum(lengths) * kv_heads * HEAD_DIM
    for name, kernel in (("own", triton_paged), ("FlashAttention 3", flash3)):
        say(case, name, partial(attended, kernel=kernel, query=query, batch=batch), pools, read_bytes)


def attended(pool: Sequence[torch.Tensor], kernel: Kernel, query: torch.Tensor, batch: PagedBatch) -> object:
    keys, values = pool
    return kernel(query, keys, values, batch, HEAD_DIM**-0.5)


def pages_of(lengths: list[int], counts: list[int]) -> tuple[PagedBatch, int]:
    """Pages in no order, as a pool has them after a while; and how many."""
    needed = [-(-length // PAGE) for length in lengths]
    order = torch.randperm(sum(needed)).int()
    table = torch.zeros(len(lengths), max(needed), dtype=torch.int32)
    for row, mine in zip(table, order.split(needed), strict=True):
        row[: len(mine)] = mine
    starts = torch.tensor([0, *counts]).cumsum(0).int().cuda()
    slots = torch.zeros(0, dtype=torch.long, device="cuda")
    held = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    return PagedBatch(slots, table.cuda(), held, starts, max(counts), max(lengths)), len(order)


if __name__ == "__main__":
    products()
    attention()
