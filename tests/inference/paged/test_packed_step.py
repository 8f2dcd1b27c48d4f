"""A packed step is the step itself, with padding that nobody sees, at places a kernel is made for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mcp_core.generation import GenerationRequest
from mcp_core.inference.paged.batch import make_step
from mcp_core.inference.paged.packed_step import PackedStep
from mcp_core.inference.paged.pages import PagePool
from mcp_core.inference.paged.scheduler import Scheduler

PAGE = 16
CHOSEN = torch.arange(900, 910)


@pytest.fixture
def parts():
    """One sequence that decodes with its token unread, one whose token is known, and a part of a prompt."""
    scheduler = Scheduler(PagePool(60, PAGE), 512, 6)
    for name, length in (("a", 40), ("b", 3)):
        scheduler.add(GenerationRequest(name, tuple(range(100, 100 + length)), 20))
    for row, part in enumerate(scheduler.plan()):
        scheduler.done(part)
        part.sequence.choose(row + 4)
    scheduler.read(scheduler._running[1], 77)
    scheduler.add(GenerationRequest("c", tuple(range(200, 260)), 20))
    scheduler.step_tokens = 2 + 21
    parts = scheduler.plan_ahead()
    assert [part.count for part in parts] == [1, 1, 21]
    return parts


def unpacked(packed, parts):
    """Of a row in which an earlier step has left what it had."""
    row = torch.full((packed.length,), 7, dtype=torch.int32)
    begun = packed.pack(parts)
    assert begun.dtype == np.int32
    row[: begun.shape[0]] = torch.from_numpy(begun)
    return packed.unpack(row, CHOSEN)


@pytest.mark.parametrize(("tokens", "sequences"), [(23, 3), (32, 3), (64, 8)], ids=["exact", "padded", "both"])
def test_it_begins_with_the_step_s_own_tensors(parts, tokens, sequences):
    expected = make_step(parts, PAGE, CHOSEN)
    found = unpacked(PackedStep(tokens, sequences, 9, PAGE), parts)
    assert torch.equal(found.tokens[:, :23], expected.tokens)
    assert found.tokens[0, :2].tolist() == [904, 77]
    assert torch.equal(found.positions[:, :23], expected.positions)
    assert torch.equal(found.last[:3], expected.last)
    for name in ("slots", "lengths", "pages", "starts"):
        whole, part = getattr(found.batch, name), getattr(expected.batch, name)
        assert torch.equal(whole[tuple(slice(size) for size in part.shape)], part), name
        assert whole.dtype == part.dtype
    assert (found.batch.longest_query, found.batch.longest_key) == (tokens, 9 * PAGE)


def test_padding_is_a_sequence_of_its_own_that_sees_one_token_of_page_0(parts):
    step = unpacked(PackedStep(64, 8, 9, PAGE), parts)
    assert step.batch.starts.tolist() == [0, 1, 2, 23, *[64] * 6]
    assert step.batch.lengths[3] == 1
    assert not step.batch.pages[3].any()
    for values in (step.tokens[0], step.positions[0], step.batch.slots):
        assert not values[23:].any()


@pytest.mark.parametrize("sequences", range(1, 9))
def test_all_tensors_lie_at_multiples_of_16_bytes(parts, sequences):
    packed = PackedStep(32, sequences, 9, PAGE)
    step = packed.unpack(torch.zeros(packed.length, dtype=torch.int32), CHOSEN)
    for tensor in (step.batch.lengths, step.batch.starts, step.batch.pages):
        assert tensor.storage_offset() % 4 == 0
    assert step.batch.pages.shape == (sequences + 1, 9)
