from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from mcp_core.batches import Batches
from mcp_core.conversations import REPLACED_KEPT, UNSEEN_S, Conversations
from mcp_core.errors import (
    Busy,
    ContextTooLong,
    InputError,
    McpError,
    ModelNotFound,
    QueueFull,
    RequestRejected,
    WorkerDied,
)
from mcp_core.generation import EngineStats, Sampling
from mcp_core.recipe import Recipe
from mcp_core.replies import Reply, Server
from mcp_core.results import Failure
from mcp_core.serving.client import Chunk
from mcp_core.views import ConversationView

GREEDY = Sampling(temperature=0.0)


class ScriptedClient:
    """Answers with the chunks of ``script(body)``; counts words as tokens and refuses prompts over ``context``."""

    def __init__(self, context: int = 1000) -> None:
        self.context = context
        self.bodies: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.words = ("one ", "two ", "three")
        self.times = (10.0, 10.1, 10.3)
        self.end: Chunk | None = None
        self.refusals: list[McpError] = []
        self.usage: dict[str, Any] = {}
        self.looks: list[EngineStats] = []
        self.running = self.most = 0

    async def stats(self) -> EngineStats:
        if not self.looks:
            raise McpError("It does not tell.", "Ask later.")
        return self.looks.pop(0)

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[Chunk]:
        assert path == "/v1/chat/completions"
        prompt = sum(len(message["content"].split()) for message in body["messages"])
        if prompt > self.context:
            raise ContextTooLong(f"{prompt} tokens do not fit in {self.context}.", "Shorten it.")
        if self.refusals:
            raise self.refusals.pop(0)
        self.bodies.append(body)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for index, (word, at_s) in enumerate(zip(self.words, self.times, strict=True)):
                yield Chunk(at_s, word, (index,))
                await asyncio.sleep(0)
            await self.gate.wait()
            if self.end:
                yield self.end
                return
            usage = {"prompt_tokens": prompt, "completion_tokens": len(self.words)} | self.usage
            yield Chunk(11.0, finish_reason="stop", usage=usage)
        finally:
            self.running -= 1


class OneServer:
    """Every worker id is the same scripted client, except "gone"."""

    def __init__(self, client: ScriptedClient) -> None:
        self.client = client
        self.cause: Failure | None = None
        self.recipe = Recipe()

    def connect(self, worker_id: str) -> Server:
        if worker_id == "gone":
            raise WorkerDied("It is gone.", "Load it again.")
        return Server(self.client, "the-model", max_requests=2, recipe=self.recipe)  # type: ignore[arg-type]

    def max_context(self, worker_id: str) -> int | None:
        return self.client.context

    async def cause_of_death(self, worker_id: str) -> Failure | None:
        return self.cause


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Room:
    """Conversations over one scripted client, and what a test does with them."""

    def __init__(self, context: int = 1000) -> None:
        self.client = ScriptedClient(context)
        self.servers = OneServer(self.client)
        self.clock = Clock()
        self.chats = Conversations(self.servers, self.clock)

    def view(self, cid: str) -> ConversationView:
        found = self.chats.view(cid)
        assert found is not None
        return found

    async def settled(self, cid: str) -> ConversationView:
        for _ in range(1000):
            if not self.view(cid).streaming:
                return self.view(cid)
            await asyncio.sleep(0.001)
        raise AssertionError("still streaming")

    async def ask(self, cid: str, text: str) -> ConversationView:
        self.chats.send(cid, text, GREEDY, 16)
        return await self.settled(cid)

    def sent(self) -> list[str]:
        return [message["content"] for message in self.client.bodies[-1]["messages"]]


def in_room(use: Callable[[Room], Awaitable[None]], context: int = 1000) -> None:
    async def run() -> None:
        room = Room(context)
        await use(room)
        await room.chats.close()

    asyncio.run(run())


def roles(view: ConversationView) -> str:
    return "".join(message.role[0] for message in view.messages)


def test_a_question_is_answered_with_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_core.conversations.Reply", lambda: Reply(sent_s=9.5))

    async def use(room: Room) -> None:
        cid = room.chats.new("w", "Be brief.")
        view = await room.ask(cid, "count to three")
        assert roles(view) == "sua"
        answer = view.messages[-1]
        assert (answer.content, answer.finish_reason, answer.failure) == ("one two three", "stop", None)
        assert answer.stats is not None
        assert answer.stats.ttft_ms == pytest.approx(500)  # sent at 9.5, first token at 10.0
        assert answer.stats.e2e_ms == pytest.approx(800)  # last token at 10.3
        assert answer.stats.tpot_ms == pytest.approx(150)  # (800 - 500) / (3 - 1)
        assert answer.stats.output_tok_s == pytest.approx(3 / 0.8)
        assert (answer.stats.prompt_tokens, answer.stats.output_tokens) == (5, 3)
        assert view.trace == pytest.approx((500, 600, 800))
        assert (view.context_tokens, view.max_context, view.dropped) == (8, 1000, 0)

    in_room(use)


def test_what_the_worker_says_of_a_reply_stands_with_it() -> None:
    async def use(room: Room) -> None:
        timing = {"queue_ms": 1.0, "prefill_ms": 20.0, "decode_ms": 300.0}
        room.client.usage = {"prompt_tokens_details": {"cached_tokens": 3}, "timing": timing}
        stats = (await room.ask(room.chats.new("w"), "count to three")).messages[-1].stats
        assert stats is not None
        assert (stats.cached_tokens, stats.queue_ms, stats.prefill_ms, stats.decode_ms) == (3, 1.0, 20.0, 300.0)
        assert stats.drafted_tokens is None

    in_room(use)


def test_a_regenerated_reply_remembers_those_before_it_and_what_each_was_served_by() -> None:
    async def use(room: Room) -> None:
        cid = room.chats.new("w")
        await room.ask(cid, "first")
        before, room.servers.recipe = room.servers.recipe, Recipe(prefix_cache=True)
        for _ in range(REPLACED_KEPT + 2):
            room.chats.regenerate(cid, GREEDY, 16)
            await room.settled(cid)
        answer = room.view(cid).messages[-1]
        assert answer.recipe == room.servers.recipe
        assert len(answer.replaced) == REPLACED_KEPT
        assert all(not each.replaced for each in answer.replaced)
        answer = (await room.ask(cid, "second")).messages[-1]
        assert answer.replaced == ()
        room.servers.recipe = before
        room.chats.regenerate(cid, GREEDY, 16)
        answer = (await room.settled(cid)).messages[-1]
        assert [each.recipe for each in (*answer.replaced, answer)] == [Recipe(prefix_cache=True), before]

    in_room(use)


@pytest.mark.parametrize(
    ("after", "guesses"),
    [
        ({"finished_total": 5}, (30, 18)),
        ({"finished_total": 6}, (None, None)),  # another reply ended meanwhile
        ({"finished_total": 5, "running": 1}, (None, None)),
    ],
)
def test_guesses_are_those_of_one_reply_or_not_known(
    after: dict[str, int], guesses: tuple[int | None, int | None]
) -> None:
    async def use(room: Room) -> None:
        room.servers.recipe = Recipe(speculation="prompt-lookup")
        room.client.looks = [
            EngineStats(finished_total=4, drafted_tokens_total=100, accepted_tokens_total=50),
            EngineStats(drafted_tokens_total=130, accepted_tokens_total=68, **after),
        ]
        cid = room.chats.new("w")
        stats = (await room.ask(cid, "count")).messages[-1].stats
        assert stats is not None
        assert (stats.drafted_tokens, stats.accepted_tokens) == guesses
        again = (await room.ask(cid, "count")).messages[-1]  # a worker that does not tell is no failure
        assert again.failure is None
        assert again.stats is not None
        assert again.stats.drafted_tokens is None

    in_room(use)


def test_the_request_carries_the_conversation_and_only_chosen_sampling() -> None:
    async def use(room: Room) -> None:
        cid = room.chats.new("w", "Be brief.")
        await room.ask(cid, "first")
        room.chats.send(cid, "second", Sampling(temperature=0.7, top_k=5, seed=3), 9)
        await room.settled(cid)
        body = room.client.bodies[-1]
        assert room.sent() == ["Be brief.", "first", "one two three", "second"]
        assert {key: value for key, value in body.items() if key != "messages"} == {
            "model": "the-model",
            "max_tokens": 9,
            "temperature": 0.7,
            "top_k": 5,
            "seed": 3,
        }

    in_room(use)


def test_while_it_streams_the_last_message_grows_and_nothing_else_may_be_asked() -> None:
    async def use(room: Room) -> None:
        room.client.gate.clear()
        cid = room.chats.new("w")
        room.chats.send(cid, "hi", GREEDY, 16)
        assert (room.view(cid).messages[-1].content, room.view(cid).streaming) == ("", True)
        await asyncio.sleep(0.01)
        assert room.view(cid).messages[-1].content == "one two three"
        assert len(room.view(cid).trace) == 3
        for ask in (
            lambda: room.chats.send(cid, "again", GREEDY, 16),
            lambda: room.chats.regenerate(cid, GREEDY, 16),
            lambda: room.chats.edit(cid, 0, "other", GREEDY, 16),
        ):
            with pytest.raises(Busy):
                ask()
        room.client.gate.set()
        assert roles(await room.settled(cid)) == "ua"

    in_room(use)


def test_stop_keeps_the_text_and_ends_the_request() -> None:
    async def use(room: Room) -> None:
        room.client.gate.clear()
        cid = room.chats.new("w")
        room.chats.send(cid, "hi", GREEDY, 16)
        await asyncio.sleep(0.01)
        room.chats.stop(cid)
        answer = room.view(cid).messages[-1]
        assert not room.view(cid).streaming
        assert (answer.content, answer.finish_reason, answer.failure) == ("one two three", "cancelled", None)
        assert answer.stats is not None
        await asyncio.sleep(0.01)
        assert room.client.running == 0
        assert roles(room.view(cid)) == "ua"
        assert room.view(cid).context_tokens is None  # not counted, and not that of an earlier reply
        room.chats.stop(cid)

    in_room(use)


def test_regenerate_replaces_the_last_answer() -> None:
    async def use(room: Room) -> None:
        cid = room.chats.new("w")
        with pytest.raises(InputError):
            room.chats.regenerate(cid, GREEDY, 16)
        await room.ask(cid, "hi")
        room.client.words = ("other", "!", "")
        room.chats.regenerate(cid, GREEDY, 16)
        view = await room.settled(cid)
        assert [message.content for message in view.messages] == ["hi", "other!"]
        assert room.sent() == ["hi"]

    in_room(use)


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_edit_replaces_a_question_and_all_after_it(system: str) -> None:
    async def use(room: Room) -> None:
        cid = room.chats.new("w", system)
        for text in ("first", "second", "third"):
            await room.ask(cid, text)
        offset = 1 if system else 0
        for index in (offset + 1, offset + 6, -1):
            with pytest.raises(InputError):
                room.chats.edit(cid, index, "x", GREEDY, 16)
        room.chats.edit(cid, offset + 2, "second, again", GREEDY, 16)
        view = await room.settled(cid)
        contents = [message.content for message in view.messages][offset:]
        assert contents == ["first", "one two three", "second, again", "one two three"]

    in_room(use)


def test_the_system_prompt_changes_and_survives_clear() -> None:
    async def use(room: Room) -> None:
        cid = room.chats.new("w")
        await room.ask(cid, "hi")
        room.chats.set_system(cid, "Be kind.")
        assert roles(room.view(cid)) == "sua"
        room.chats.clear(cid)
        assert roles(room.view(cid)) == "s"
        await room.ask(cid, "again")
        assert room.sent() == ["Be kind.", "again"]
        room.chats.set_system(cid, "")
        assert roles(room.view(cid)) == "ua"

    in_room(use)


def test_a_full_context_leaves_out_the_oldest_turns_and_says_so() -> None:
    async def use(room: Room) -> None:
        cid = room.chats.new("w", "sys")
        for _ in range(3):
            view = await room.ask(cid, "a b")  # 1 + 5 per turn + 2 words
        assert (view.dropped, len(room.sent())) == (2, 4)
        assert room.sent() == ["sys", "a b", "one two three", "a b"]
        view = await room.ask(cid, "a b c d e f g h i")
        assert (view.dropped, room.sent()) == (6, ["sys", "a b c d e f g h i"])
        assert len(view.messages) == 9
        view = await room.ask(cid, "w " * 11)
        answer = view.messages[-1]
        assert answer.failure is not None
        assert answer.failure.kind == "context"
        assert (answer.content, answer.finish_reason) == ("", "error")

    in_room(use, context=10)


def test_a_question_too_long_by_itself_costs_no_older_turn() -> None:
    async def use(room: Room) -> None:
        cid = room.chats.new("w")
        await room.ask(cid, "a b")
        view = await room.ask(cid, "w " * 11)
        assert view.messages[-1].failure is not None
        assert (view.dropped, view.context_tokens) == (0, None)
        await room.ask(cid, "c d")
        assert room.sent() == ["a b", "one two three", "c d"]

    in_room(use, context=10)


def test_after_an_edit_old_turns_fit_again() -> None:
    async def use(room: Room) -> None:
        cid = room.chats.new("w")
        for _ in range(3):
            await room.ask(cid, "a b")
        assert room.view(cid).dropped == 2
        room.chats.edit(cid, 2, "c d", GREEDY, 16)
        view = await room.settled(cid)
        assert (view.dropped, room.sent()) == (0, ["a b", "one two three", "c d"])

    in_room(use, context=10)


def test_a_turn_that_failed_is_not_sent_again() -> None:
    async def use(room: Room) -> None:
        cid = room.chats.new("w")
        room.client.refusals = [QueueFull("full", "wait")]
        view = await room.ask(cid, "lost")
        assert view.messages[-1].failure == Failure(kind="queue", message="full", hint="wait")
        assert view.messages[-1].stats is None
        await room.ask(cid, "hi")
        assert room.sent() == ["hi"]

    in_room(use)


@pytest.mark.parametrize("cause", [None, Failure(kind="oom", message="Out of memory.", hint="Smaller.")])
def test_a_worker_that_dies_in_the_middle_leaves_the_text_and_the_reason(cause: Failure | None) -> None:
    async def use(room: Room) -> None:
        lost = Failure(kind="worker", message="The connection ended.", hint="Load it again.")
        room.client.end, room.servers.cause = Chunk(11.0, error=lost), cause
        cid = room.chats.new("w")
        answer = (await room.ask(cid, "hi")).messages[-1]
        assert (answer.content, answer.finish_reason) == ("one two three", "error")
        assert answer.failure == (cause or lost)
        assert answer.stats is not None

    in_room(use)


def test_a_reply_nobody_looks_at_is_stopped_and_a_visitor_counts_for_two_minutes() -> None:
    async def use(room: Room) -> None:
        room.client.gate.clear()
        cid, other = room.chats.new("w"), room.chats.new("w")
        room.chats.send(cid, "hi", GREEDY, 16)
        await asyncio.sleep(0.01)
        room.clock.now_s += UNSEEN_S - 1
        room.chats.view(other)
        room.chats.stop_unseen()
        assert room.chats.streaming_on("w")
        assert room.chats.users("w") == 2
        room.clock.now_s += 2
        room.chats.stop_unseen()
        assert room.chats.users("w") == 1
        assert not room.chats.streaming_on("w")
        answer = room.view(cid).messages[-1]
        assert (answer.content, answer.finish_reason) == ("one two three", "cancelled")
        assert answer.failure is not None
        assert answer.failure.kind == "cancelled"

    in_room(use)


def test_another_worker_takes_over_and_one_that_is_gone_does_not() -> None:
    async def use(room: Room) -> None:
        cid = room.chats.new("w")
        await room.ask(cid, "hi")
        room.chats.use_worker(cid, "w2")
        assert room.view(cid).worker_id == "w2"
        assert (room.chats.users("w"), room.chats.users("w2")) == (0, 1)
        with pytest.raises(WorkerDied):
            room.chats.use_worker(cid, "gone")
        with pytest.raises(WorkerDied):
            room.chats.new("gone")
        assert roles(await room.ask(cid, "still here?")) == "uaua"

    in_room(use)


def test_ids_are_unguessable_and_unknown_ones_are_told() -> None:
    async def use(room: Room) -> None:
        ids = {room.chats.new("w") for _ in range(50)}
        assert len(ids) == 50
        assert min(map(len, ids)) >= 20
        assert room.chats.view("nope") is None
        with pytest.raises(ModelNotFound):
            room.chats.send("nope", "hi", GREEDY, 16)

    in_room(use)


def in_batches(use: Callable[[Batches, ScriptedClient, OneServer], Awaitable[None]]) -> None:
    async def run() -> None:
        client = ScriptedClient()
        servers = OneServer(client)
        batches = Batches(servers)
        await use(batches, client, servers)
        await batches.close()

    asyncio.run(run())


async def batch_ended(batches: Batches, bid: str) -> None:
    for _ in range(2000):
        if not batches.running_on("w"):
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the batch did not end")


def test_a_batch_sends_as_many_as_the_worker_holds_and_measures_each() -> None:
    async def use(batches: Batches, client: ScriptedClient, servers: OneServer) -> None:
        bid = batches.start("w", [f"prompt {index}" for index in range(5)], GREEDY, 16)
        assert [item.state for item in batches.view(bid)] == ["waiting"] * 5
        assert batches.running_on("w")
        await batch_ended(batches, bid)
        items = batches.view(bid)
        assert [(item.index, item.prompt, item.state) for item in items] == [
            (index, f"prompt {index}", "ok") for index in range(5)
        ]
        assert {item.text for item in items} == {"one two three"}
        assert all(item.stats is not None and item.stats.output_tokens == 3 for item in items)
        assert client.most == 2
        assert sorted(body["messages"][0]["content"] for body in client.bodies) == [
            f"prompt {index}" for index in range(5)
        ]

    in_batches(use)


def test_a_full_queue_is_waited_for_and_another_refusal_is_that_items_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mcp_core.batches.QUEUE_RETRY_S", 0.001)

    async def use(batches: Batches, client: ScriptedClient, servers: OneServer) -> None:
        client.refusals = [QueueFull("full", ""), RequestRejected("bad", "fix it"), QueueFull("full", "")]
        bid = batches.start("w", ["a", "b", "c"], GREEDY, 16)
        await batch_ended(batches, bid)
        assert sorted(item.state for item in batches.view(bid)) == ["failed", "ok", "ok"]
        (failed,) = (item for item in batches.view(bid) if item.state == "failed")
        assert failed.failure == Failure(kind="request", message="bad", hint="fix it")

    in_batches(use)


def test_a_batch_is_stopped_and_what_ended_stays() -> None:
    async def use(batches: Batches, client: ScriptedClient, servers: OneServer) -> None:
        client.gate.clear()
        bid = batches.start("w", ["a", "b", "c"], GREEDY, 16)
        await asyncio.sleep(0.01)
        assert [item.state for item in batches.view(bid)] == ["running", "running", "waiting"]
        batches.stop(bid)
        assert [item.state for item in batches.view(bid)] == ["cancelled"] * 3
        assert batches.view(bid)[0].text == "one two three"
        assert not batches.running_on("w")
        await asyncio.sleep(0.01)
        assert client.running == 0

    in_batches(use)


def test_a_batch_whose_worker_died_says_why() -> None:
    async def use(batches: Batches, client: ScriptedClient, servers: OneServer) -> None:
        client.end = Chunk(11.0, error=Failure(kind="worker", message="cut", hint=""))
        servers.cause = Failure(kind="oom", message="Out of memory.", hint="Smaller.")
        bid = batches.start("w", ["a"], GREEDY, 16)
        await batch_ended(batches, bid)
        (item,) = batches.view(bid)
        assert (item.state, item.text, item.failure) == ("failed", "one two three", servers.cause)

    in_batches(use)


def test_no_prompts_and_no_such_batch() -> None:
    async def use(batches: Batches, client: ScriptedClient, servers: OneServer) -> None:
        with pytest.raises(RequestRejected):
            batches.start("w", [], GREEDY, 16)
        assert batches.view("nope") == ()
        batches.stop("nope")

    in_batches(use)
