"""What preempted sequences had is kept where that pays, comes back as it was, and takes no more than it may."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from mcp_core.generation import GenerationRequest
from mcp_core.inference.paged.attention import PagedCache
from mcp_core.inference.paged.host_pages import HostPages, TimedStep
from mcp_core.inference.paged.kernels import gathered
from mcp_core.inference.paged.pages import PagePool
from mcp_core.inference.paged.scheduler import Scheduler

PAGE, COPY_S = 4, 0.5


class Clock:
    """Each look at it is half of what a copy takes, which looks twice, later than the one before."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += COPY_S
        return self.now_s


def host_of(share: bool = False, limit_pages: int = 100) -> HostPages:
    config = LlamaConfig(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, hidden_size=16)
    cache = PagedCache(config, 12, PAGE, torch.float32, torch.device("cpu"), gathered)
    for index, tensor in enumerate(cache.tensors):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index)))
    return HostPages(cache, PagePool(12, PAGE, share), limit_pages * cache.page_bytes, Clock())


def computes_at(host: HostPages, seconds_a_token: float) -> None:
    host._computing.add(1000, 1000 * seconds_a_token)


def planned(host: HostPages, *prompts: tuple[int, ...]) -> Scheduler:
    """These prompts, computed and with their first token, so that each has one to compute."""
    scheduler = Scheduler(host.pool, 64, 8, host)
    for index, prompt in enumerate(prompts):
        scheduler.add(GenerationRequest(str(index), prompt, 20))
        for part in scheduler.plan():
            if part.sequence.request.id == str(index):
                scheduler.done(part)
                part.sequence.tokens.append(100 + index)
    return scheduler


def contents(host: HostPages, scheduler: Scheduler) -> list[torch.Tensor]:
    """What the first running sequence has in the pool, token by token."""
    sequence = scheduler._running[0]
    pages = torch.tensor(sequence.pages)
    return [tensor[pages].flatten(0, 1)[: sequence.computed] for tensor in host.cache.tensors]


def test_what_was_computed_comes_back_as_it_was() -> None:
    host = host_of()
    computes_at(host, 10.0)
    scheduler = planned(host, tuple(range(10)))
    before, pages = contents(host, scheduler), list(scheduler._running[0].pages)
    scheduler.preempt_all()
    assert (host.nbytes, host.kept_total, host.pool.used) == (3 * host.cache.page_bytes, 1, 0)
    for tensor in host.cache.tensors:  # others use the pages meanwhile
        tensor[pages] = torch.nan
    taken = host.pool.take(2)
    (part,) = scheduler.plan()
    assert part.count == 1  # the token whose logits are wanted
    assert not set(taken or ()) & set(part.sequence.pages)
    for now, then in zip(contents(host, scheduler), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)
    assert (host.nbytes, host.returned_total) == (0, 1)


def test_one_that_lost_all_but_its_last_token_s_place_computes_that_one() -> None:
    """After a step that failed everything is computed, the newest token included, and its logits are not known."""
    host = host_of()
    computes_at(host, 10.0)
    scheduler = planned(host, tuple(range(10)))
    scheduler._running[0].advance(host.pool, 0)
    scheduler._running[0].computed = 11
    scheduler.preempt_all()
    (part,) = scheduler.plan()
    assert (part.sequence.computed, part.count) == (10, 1)


@pytest.mark.parametrize(("seconds_a_token", "kept"), [(0.09, 0), (0.11, 1)])
def test_it_is_kept_where_copying_twice_takes_less_than_computing(seconds_a_token: float, kept: int) -> None:
    """Ten tokens; a copy of their three pages was seen to take half a second, so both ways take one."""
    host = host_of()
    computes_at(host, seconds_a_token)
    host._copying.add(3 * host.cache.page_bytes, COPY_S)
    scheduler = planned(host, tuple(range(10)))
    scheduler.preempt_all()
    assert host.kept_total == kept
    (part,) = scheduler.plan()
    assert part.count == (1 if kept else 11)


def test_nothing_is_kept_before_it_is_known_what_computing_takes() -> None:
    host = host_of()
    scheduler = planned(host, tuple(range(10)))
    scheduler.preempt_all()
    assert host.kept_total == 0


def test_no_more_is_kept_than_may_be_and_who_has_ended_takes_nothing() -> None:
    host = host_of(limit_pages=5)
    computes_at(host, 10.0)
    scheduler = planned(host, tuple(range(10)), tuple(range(50, 60)))
    scheduler.preempt_all()
    assert (host.kept_total, host.nbytes) == (1, 3 * host.cache.page_bytes)
    for name in "01":
        assert scheduler.drop(name) is not None
    assert host.nbytes == 0


def test_what_the_prefix_cache_has_is_copied_neither_way() -> None:
    host = host_of(share=True)
    computes_at(host, 10.0)
    prefix = tuple(range(8))
    scheduler = planned(host, (*prefix, 20, 21), (*prefix, 30, 31, 32))
    scheduler._preempt(scheduler._running[-1])
    assert host.nbytes == host.cache.page_bytes  # two pages are the other's too
    scheduler._preempt(scheduler._running[-1])
    assert host.nbytes == 4 * host.cache.page_bytes
    before = host._copying.units
    counts = [part.count for part in scheduler.plan()]
    assert counts == [1, 1]
    assert host._copying.units - before == 2 * host.cache.page_bytes  # each one's own last page


def test_without_the_prefix_before_it_what_was_kept_is_of_no_use() -> None:
    host = host_of(share=True)
    computes_at(host, 10.0)
    prefix = tuple(range(8))
    scheduler = planned(host, (*prefix, 20, 21), (*prefix, 30, 31, 32))
    scheduler._preempt(scheduler._running[-1])
    assert scheduler.drop("0") is not None
    host.pool.forget()
    (part,) = scheduler.plan()
    assert (part.count, host.nbytes, host.returned_total) == (12, 0, 0)


def test_what_computing_takes_is_known_from_steps_of_prompts_that_were_waited_for() -> None:
    host = host_of()
    host.step_read(TimedStep(0.0, 8, 0), waited=True)  # decoding: says nothing
    assert host._computing.of_one is None
    read_s = host._read_s
    host.step_read(TimedStep(read_s - 0.2, 30, 30), waited=False)  # launched before that was read; still at work
    host.step_read(TimedStep(read_s + 0.3, 20, 14), waited=True)
    assert host._computing.of_one == pytest.approx((host._read_s - read_s) / 50)
