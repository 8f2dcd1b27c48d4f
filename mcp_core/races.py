"""Races: one prompt sent to two workers, measured one after the other while nothing else runs on their device.

Everything runs on one asyncio loop. Nothing of it is stored, and no Run is written. This file does not know how a
race is replayed (``race.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mcp_core import devices
from mcp_core.errors import InputError, McpError
from mcp_core.generation import Sampling
from mcp_core.race import ENDED, Lane, RaceView
from mcp_core.replies import Reply, Server, Servers, read_reply
from mcp_core.results import Failure

if TYPE_CHECKING:
    from mcp_core.recipe import Recipe
    from mcp_core.serving.client import Chunk

__all__ = ["RACES_KEPT", "Entrant", "Races"]

RACES_KEPT = 20
# Shares no more than the chat template's beginning with a prompt; what a prefix cache knew stands with the lane.
_WARM_UP = {"role": "user", "content": "Warm-up: count to four."}
_WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Entrant:
    """A worker that takes part."""

    worker_id: str
    title: str
    recipe: Recipe


@dataclass(slots=True)
class _Recorded(Reply):
    """A reply whose chunks are kept one by one."""

    pieces: list[str] = field(default_factory=list)

    def add(self, chunk: Chunk) -> None:
        if chunk.has_token:
            self.pieces.append(chunk.text)
        Reply.add(self, chunk)


@dataclass(eq=False, slots=True)
class _Lane:
    entrant: Entrant
    server: Server
    state: Literal["waiting", "warm-up", "measuring", "ok", "failed", "cancelled"] = "waiting"
    reply: _Recorded = field(default_factory=_Recorded)

    def view(self) -> Lane:
        reply, who = self.reply, self.entrant
        return Lane(
            who.worker_id,
            who.title,
            who.recipe,
            self.state,
            tuple(reply.trace_ms),
            tuple(reply.pieces),
            reply.stats(),
            reply.finish_reason,
            reply.failure,
        )


@dataclass(eq=False, slots=True)
class _Race:
    id: str
    prompt: str
    together: bool
    lanes: tuple[_Lane, ...]
    task: asyncio.Task[None] | None = None

    def view(self) -> RaceView:
        return RaceView(self.id, self.prompt, self.together, tuple(lane.view() for lane in self.lanes))

    @property
    def running(self) -> bool:
        return any(lane.state not in ENDED for lane in self.lanes)


class Races:
    """The newest races of this app, by an unguessable id. ``own_leases`` are those of the app's own workers."""

    def __init__(self, servers: Servers, own_leases: Callable[[], Collection[str]] = tuple) -> None:
        self._servers = servers
        self._own_leases = own_leases
        self._all: dict[str, _Race] = {}
        self._measuring: dict[str, str] = {}

    def start(
        self, entrants: Sequence[Entrant], prompt: str, sampling: Sampling, max_tokens: int, *, together: bool
    ) -> str:
        """Measure every entrant on this prompt and return the race's id.

        One after the other with the device to themselves, or ``together`` and sharing it. Raises InputError for an
        empty prompt or two devices, Busy when the device is in use, and as ``Servers.connect``.
        """
        if not prompt.strip():
            raise InputError("There is no prompt to race on.", "Write one.")
        places = {entrant.recipe.device for entrant in entrants}
        if len(places) != 1:
            raise InputError("The two run on different devices.", "Choose two that share one.")
        (device,) = places
        lanes = tuple(_Lane(entrant, self._servers.connect(entrant.worker_id)) for entrant in entrants)
        lease = devices.acquire(device, "measure", "a race", besides=self._own_leases())
        race = _Race(secrets.token_urlsafe(16), prompt, together, lanes)
        self._measuring[device] = f"a race between {lanes[0].entrant.title} and {lanes[-1].entrant.title}"
        race.task = asyncio.create_task(self._run(race, lease, sampling, max_tokens))
        self._all[race.id] = race
        for old in list(self._all)[:-RACES_KEPT]:
            if not self._all[old].running:
                del self._all[old]
        return race.id

    def view(self, race_id: str) -> RaceView | None:
        """As it is now; None for an unknown id."""
        return self._all[race_id].view() if race_id in self._all else None

    def measuring(self, device: str) -> str | None:
        """The race that has this device now, in words; None when there is none."""
        return self._measuring.get(device)

    def stop(self, race_id: str) -> None:
        """End what has not ended; what has come is kept."""
        race = self._all.get(race_id)
        if race is not None and race.task is not None and race.running:
            race.task.cancel()

    async def close(self) -> None:
        """Stop every race."""
        tasks = [race.task for race in self._all.values() if race.task]
        for race_id in self._all:
            self.stop(race_id)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, race: _Race, lease: devices.Lease, sampling: Sampling, max_tokens: int) -> None:
        try:
            if race.together:
                await asyncio.gather(*(self._measure(lane, race, sampling, max_tokens) for lane in race.lanes))
            else:
                for lane in race.lanes:
                    await self._measure(lane, race, sampling, max_tokens)
        finally:
            for lane in race.lanes:
                if lane.state not in ENDED:
                    lane.state, lane.reply.finish_reason = "cancelled", "cancelled"
            self._measuring.pop(lease.device, None)
            lease.release()

    async def _measure(self, lane: _Lane, race: _Race, sampling: Sampling, max_tokens: int) -> None:
        lane.state = "warm-up"
        with contextlib.suppress(McpError):  # the measured request says what is wrong
            await read_reply(Reply(), lane.server, [_WARM_UP], Sampling(temperature=0), _WARM_UP_TOKENS)
        lane.reply, lane.state = _Recorded(), "measuring"
        messages = [{"role": "user", "content": race.prompt}]
        try:
            await read_reply(lane.reply, lane.server, messages, sampling, max_tokens)
        except McpError as error:
            lane.reply.fail(Failure.of(error))
        failure = lane.reply.failure
        if failure is not None and failure.kind == "worker":
            lane.reply.fail(await self._servers.cause_of_death(lane.entrant.worker_id) or failure)
        lane.state = "failed" if failure else "ok"
