"""Who takes part in a step: order, budget, room; nothing lost when the pool is full."""

from __future__ import annotations

import random

import pytest

from mcp_core.generation import GenerationRequest
from mcp_core.inference.paged.pages import PagePool
from mcp_core.inference.paged.scheduler import Scheduler


def request(name: str, prompt: int, output: int = 8, first: int = 0) -> GenerationRequest:
    return GenerationRequest(name, tuple(range(first, first + prompt)), output)


def scheduler(pages: int = 100, step_tokens: int = 32, max_running: int = 8, *, share: bool = False) -> Scheduler:
    return Scheduler(PagePool(pages + 1, 4, share), step_tokens, max_running)


def compute(plan: Scheduler) -> list[tuple[str, int]]:
    """Do the next step; a sequence that has its tokens leaves. Returns who took part with how many."""
    parts = plan.plan()
    told = [(part.sequence.request.id, part.count) for part in parts]
    for part in parts:
        complete, sequence = part.complete, part.sequence
        plan.done(part)
        if complete:
            sequence.tokens.append(1000 + sequence.output_count)
            if sequence.output_count == sequence.request.max_tokens:
                plan.end(sequence)
    return told


def test_prompts_are_cut_by_the_budget_in_order_of_arrival() -> None:
    plan = scheduler(step_tokens=10)
    for name in "abc":
        plan.add(request(name, 7))
    assert compute(plan) == [("a", 7), ("b", 3)]
    assert compute(plan) == [("a", 1), ("b", 4), ("c", 5)]
    assert compute(plan) == [("a", 1), ("b", 1), ("c", 2)]
    assert compute(plan) == [("a", 1), ("b", 1), ("c", 1)]


def test_no_more_run_than_may() -> None:
    plan = scheduler(max_running=2)
    for name in "abc":
        plan.add(request(name, 4, 2))
    assert [name for name, _ in compute(plan)] == ["a", "b"]
    compute(plan)
    assert [name for name, _ in compute(plan)] == ["c"]


def test_the_youngest_makes_room_and_is_computed_again() -> None:
    plan = scheduler(pages=4, step_tokens=64)
    plan.add(request("old", 7, 6))
    plan.add(request("young", 3, 6, first=50))
    seen: list[str] = []
    while plan.running or plan.waiting:
        seen += [f"{name}:{count}" for name, count in compute(plan)]
    assert plan.preemptions >= 1
    assert seen.count("old:7") == 1  # never computed twice
    assert plan.pool.used == 0


def test_prompts_that_block_each_other_are_resolved() -> None:
    plan = scheduler(pages=5, step_tokens=8)
    plan.add(request("a", 17, 2))
    plan.add(request("b", 17, 2, first=50))
    for _ in range(40):
        if not (plan.running or plan.waiting):
            break
        assert compute(plan)
    assert (plan.running, plan.waiting) == (0, 0)


def test_a_known_prefix_is_not_computed_again() -> None:
    plan = scheduler(share=True)
    plan.add(request("first", 20, 1))
    assert compute(plan) == [("first", 20)]
    plan.add(request("second", 20, 1))
    assert compute(plan) == [("second", 4)]


@pytest.mark.parametrize("share", [False, True])
def test_everything_ends_once_whatever_the_sizes(share: bool) -> None:
    draw = random.Random(3)
    plan = scheduler(pages=20, step_tokens=16, max_running=6, share=share)
    waiting = [request(f"r{index}", draw.randrange(1, 40), draw.randrange(1, 30)) for index in range(60)]
    for each in waiting:
        plan.add(each)
    dropped = {f"r{index}" for index in range(0, 60, 7)}
    for step in range(5000):
        if step % 5 == 0 and dropped:
            plan.drop(dropped.pop())
        if not (plan.running or plan.waiting):
            break
        parts = compute(plan)
        assert parts
        assert sum(count for _, count in parts) <= 16
    assert (plan.running, plan.waiting, plan.pool.used) == (0, 0, 0)
