from __future__ import annotations

import asyncio

from mcp_core.generation import TokenEvent
from mcp_core.serving.inbox import Inboxes


def event(request_id: str, token: int) -> TokenEvent:
    return TokenEvent(request_id, 0.0, token)


def test_a_step_wakes_the_loop_once_and_everything_that_came_is_taken_together() -> None:
    async def scenario() -> list[list[int | None]]:
        loop, woken = asyncio.get_running_loop(), []
        inboxes = Inboxes(loop)
        first, other = inboxes.open(["a", "b"]), inboxes.open(["c"])
        plain = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *given: woken.append(given) or plain(*given)  # type: ignore[method-assign]
        await asyncio.to_thread(inboxes.deliver, [event("a", 1), event("c", 2), event("b", 3), event("gone", 4)])
        handed_over = sum(given[0] == inboxes._sort for given in woken)
        assert handed_over == 1
        taken = [await first.take(), await other.take()]
        taking = asyncio.create_task(first.take())
        await asyncio.sleep(0)
        await asyncio.to_thread(inboxes.deliver, [event("b", 5), event("a", 6)])
        return [[each.token for each in events] for events in (*taken, await taking)]

    assert asyncio.run(scenario()) == [[1, 3], [2], [5, 6]]


def test_an_abandoned_inbox_wakes_its_taker_with_nothing_and_stays_so() -> None:
    async def scenario() -> None:
        inboxes = Inboxes(asyncio.get_running_loop())
        inbox = inboxes.open(["a"])
        taking = asyncio.create_task(inbox.take())
        await asyncio.sleep(0)
        inbox.put(event("a", 1))
        inbox.abandon()
        assert await taking == []
        assert await asyncio.wait_for(inbox.take(), 5) == []

    asyncio.run(scenario())


def test_a_taker_that_was_cancelled_leaves_the_events_to_the_next() -> None:
    async def scenario() -> None:
        inbox = Inboxes(asyncio.get_running_loop()).open(["a"])
        taking = asyncio.create_task(inbox.take())
        await asyncio.sleep(0)
        taking.cancel()
        inbox.put(event("a", 1))
        await asyncio.gather(taking, return_exceptions=True)
        inbox.put(event("a", 2))
        assert [each.token for each in await inbox.take()] == [1, 2]

    asyncio.run(scenario())


def test_a_closed_inbox_gets_nothing_more() -> None:
    async def scenario() -> None:
        inboxes = Inboxes(asyncio.get_running_loop())
        inbox = inboxes.open(["a"])
        inboxes.close(inbox)
        inboxes.deliver([event("a", 1)])
        await asyncio.sleep(0.01)
        inbox.put(event("a", 2))
        assert [each.token for each in await inbox.take()] == [2]

    asyncio.run(scenario())
