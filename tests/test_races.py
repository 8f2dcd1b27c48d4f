"""Races over scripted clients: one lane at a time, the device held meanwhile, nothing lost when one fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from mcp_core import devices
from mcp_core.errors import Busy, InputError, RequestRejected, WorkerDied
from mcp_core.generation import Sampling
from mcp_core.presets import bundled
from mcp_core.race import RaceView
from mcp_core.races import RACES_KEPT, Entrant, Races
from mcp_core.recipe import Recipe
from mcp_core.replies import Server
from mcp_core.results import Failure
from mcp_core.serving.client import Chunk

GREEDY = Sampling(temperature=0.0)
RECIPE = bundled().replace({"device": "cpu"})


class Track:
    """Two workers that answer with their own name, and a log of which request began and ended when."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, str]] = []
        self.errors: dict[str, Exception] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    def connect(self, worker_id: str) -> Server:
        if worker_id == "gone":
            raise WorkerDied("It is gone.", "Load it again.")
        return Server(Runner(worker_id, self), "the-model", 2)  # type: ignore[arg-type]

    def max_context(self, worker_id: str) -> int | None:
        return None

    async def cause_of_death(self, worker_id: str) -> Failure | None:
        return Failure(kind="oom", message=f"{worker_id} ran out of memory.")


class Runner:
    def __init__(self, name: str, track: Track) -> None:
        self.name, self.track = name, track

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[Chunk]:
        said = body["messages"][0]["content"]
        what = "warm-up" if said.startswith("Warm-up") else said
        self.track.log.append((self.name, what, "began"))
        if what != "warm-up" and self.name in self.track.errors:
            raise self.track.errors[self.name]
        for index in range(2):
            yield Chunk(100.0 + index, f"{self.name}{index} ", (index,))
            await asyncio.sleep(0)
        if what != "warm-up":
            await self.track.gate.wait()
        self.track.log.append((self.name, what, "ended"))
        yield Chunk(102.0, finish_reason="stop", usage={"prompt_tokens": 5, "completion_tokens": 2})


def entrant(worker_id: str, recipe: Recipe = RECIPE) -> Entrant:
    return Entrant(worker_id, f"Model {worker_id}", recipe)


AB = (entrant("a"), entrant("b"))


def racing(use: Callable[[Races, Track], Awaitable[None]]) -> None:
    async def run() -> None:
        track = Track()
        races = Races(track)
        await use(races, track)
        await races.close()
        assert devices.holders("cpu") == ()

    asyncio.run(run())


async def ended(races: Races, race_id: str) -> RaceView:
    for _ in range(2000):
        view = races.view(race_id)
        assert view is not None
        if not view.running:
            await asyncio.sleep(0)
            return view
        await asyncio.sleep(0.001)
    raise AssertionError("still running")


def test_one_lane_at_a_time_each_warmed_up_first() -> None:
    async def use(races: Races, track: Track) -> None:
        view = await ended(races, races.start(AB, "hello", GREEDY, 16, together=False))
        assert [entry[:2] for entry in track.log if entry[2] == "began"] == [
            ("a", "warm-up"),
            ("a", "hello"),
            ("b", "warm-up"),
            ("b", "hello"),
        ]
        assert track.log[1::2] == [(name, what, "ended") for name, what, _ in track.log[0::2]]  # never two at once
        first, second = view.lanes
        assert (first.state, first.pieces, second.pieces) == ("ok", ("a0 ", "a1 "), ("b0 ", "b1 "))
        assert len(first.at_ms) == 2
        assert first.stats is not None
        assert (first.stats.prompt_tokens, first.finish_reason) == (5, "stop")
        assert second.title == "Model b"

    racing(use)


def test_together_both_are_at_work_at_once_and_it_is_said() -> None:
    async def use(races: Races, track: Track) -> None:
        track.gate.clear()
        race_id = races.start(AB, "hello", GREEDY, 16, together=True)
        await asyncio.sleep(0.02)
        assert {entry[0] for entry in track.log if entry[1:] == ("hello", "began")} == {"a", "b"}
        track.gate.set()
        assert (await ended(races, race_id)).together

    racing(use)


def test_the_device_is_taken_meanwhile_and_given_back() -> None:
    async def use(races: Races, track: Track) -> None:
        track.gate.clear()
        race_id = races.start(AB, "hello", GREEDY, 16, together=False)
        assert races.measuring("cpu") == "a race between Model a and Model b"
        with pytest.raises(Busy):
            races.start(AB, "again", GREEDY, 16, together=False)
        track.gate.set()
        await ended(races, race_id)
        assert races.measuring("cpu") is None

    racing(use)


def test_a_lane_that_fails_says_why_and_the_other_is_measured() -> None:
    async def use(races: Races, track: Track) -> None:
        track.errors = {"a": RequestRejected("Too long.", "Shorten it.")}
        first, second = (await ended(races, races.start(AB, "hello", GREEDY, 16, together=False))).lanes
        assert (first.state, first.pieces) == ("failed", ())
        assert first.failure is not None
        assert first.failure.message == "Too long."
        assert second.state == "ok"
        track.errors = {"b": WorkerDied("The connection ended.", "Load it again.")}
        _, second = (await ended(races, races.start(AB, "hello", GREEDY, 16, together=False))).lanes
        assert second.failure is not None
        assert second.failure.message == "b ran out of memory."

    racing(use)


def test_a_stopped_race_keeps_what_came() -> None:
    async def use(races: Races, track: Track) -> None:
        track.gate.clear()
        race_id = races.start(AB, "hello", GREEDY, 16, together=False)
        await asyncio.sleep(0.02)
        races.stop(race_id)
        first, second = (await ended(races, race_id)).lanes
        assert (first.state, first.pieces) == ("cancelled", ("a0 ", "a1 "))
        assert (second.state, second.pieces) == ("cancelled", ())

    racing(use)


def test_what_cannot_race_is_refused() -> None:
    async def use(races: Races, track: Track) -> None:
        with pytest.raises(InputError):
            races.start(AB, "  ", GREEDY, 16, together=False)
        gpu = entrant("b", RECIPE.replace({"device": "cuda:0"}))
        with pytest.raises(InputError, match="different devices"):
            races.start((AB[0], gpu), "hello", GREEDY, 16, together=False)
        with pytest.raises(WorkerDied):
            races.start((AB[0], entrant("gone")), "hello", GREEDY, 16, together=False)
        assert races.view("no such race") is None
        races.stop("no such race")

    racing(use)


def test_only_the_newest_races_are_kept() -> None:
    async def use(races: Races, track: Track) -> None:
        ids = []
        for index in range(RACES_KEPT + 1):
            ids.append(races.start(AB, f"prompt {index}", GREEDY, 16, together=False))
            await ended(races, ids[-1])
        assert races.view(ids[0]) is None
        assert races.view(ids[1]) is not None

    racing(use)
