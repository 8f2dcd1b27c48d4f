from __future__ import annotations

import torch
from torch import nn

from mcp_core.memory.module_memory import memory_by_module
from mcp_core.memory.storage import weights_bytes


def tied() -> nn.Module:
    """An embedding of 10 x 4 fp32 that the output layer shares, a known tensor of 1,000 bytes, a layer norm."""
    model = nn.Module()
    model.embed = nn.Embedding(10, 4)
    model.norm = nn.LayerNorm(4)
    model.head = nn.Linear(4, 10, bias=True)
    model.head.weight = model.embed.weight
    model.known = nn.Module()
    model.known.register_buffer("table", torch.zeros(1000, dtype=torch.uint8))
    return model


def test_each_module_has_its_own_bytes_and_a_shared_tensor_counts_where_it_comes_first() -> None:
    rows = {row.name: row for row in memory_by_module(tied())}
    assert {name: row.bytes for name, row in rows.items()} == {
        "embed": 160,
        "norm": 32,
        "head": 40,
        "known": 1000,
    }
    assert (rows["embed"].kind, rows["embed"].dtype) == ("Embedding", "float32")


def test_modules_add_up_to_the_weights() -> None:
    model = tied()
    assert sum(row.bytes for row in memory_by_module(model)) == weights_bytes(model)
