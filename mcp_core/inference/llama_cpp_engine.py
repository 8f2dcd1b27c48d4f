"""LlamaCppEngine: the same requests and token events as ``engine.Engine``, computed by llama.cpp's own server.

llama.cpp batches by its slots; this queues what has no slot yet, chooses the slot, and turns the server's answers
into events. One thread reads all answers. This file does not know about HTTP, text or how a model was loaded.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mcp_core import llama_cpp
from mcp_core.errors import LoadFailed, McpError, QueueFull, RequestRejected
from mcp_core.generation import EngineStats, FinishReason, GenerationRequest, Sampling, TokenEvent
from mcp_core.inference.ledger import Ledger
from mcp_core.inference.llama_cpp_course import Course
from mcp_core.inference.llama_cpp_limits import require_servable
from mcp_core.inference.llama_cpp_model import LlamaCppModel
from mcp_core.inference.llama_cpp_scoring import ScoredCourse
from mcp_core.inference.llama_cpp_server import Answer, score_body, stream_body, whole_body
from mcp_core.inference.llama_cpp_tokens import TokenBytes
from mcp_core.inference.mode import ModeFigures, Outcome, StepOutcome
from mcp_core.profile_plan import ProfilePlan
from mcp_core.recipe import Recipe
from mcp_core.results import Failure
from mcp_core.trace_summary import RawTrace

__all__ = ["LlamaCppEngine"]

_log = logging.getLogger(__name__)

_WARM_UP_TOKENS = 4
# The answers of one step arrive within this of each other; waiting for them makes one hand-over a step.
_STEP_SETTLES_S = 0.0002


@dataclass(slots=True, eq=False)
class _Slot:
    """One of llama.cpp's: whose tokens it holds, and who works in it."""

    number: int
    tokens: tuple[int, ...] = ()
    tenant: str = ""
    used_s: float = 0.0
    busy: bool = False

    def shared(self, request: GenerationRequest) -> int:
        """Tokens of the prompt that it holds already."""
        if self.tenant != request.tenant:
            return 0
        pairs = zip(self.tokens, request.prompt, strict=False)
        return next((place for place, (one, other) in enumerate(pairs) if one != other), len(self.tokens))


@dataclass(slots=True, eq=False)
class _Running:
    """A request in a slot, and the answer that it waits for."""

    course: Course
    slot: _Slot
    answer: Answer
    cancelled: bool = field(default=False)


class LlamaCppEngine:
    """Serves requests through llama.cpp. Every accepted request ends in exactly one event with ``finish`` set."""

    def __init__(self, loaded: LlamaCppModel, recipe: Recipe, sink: Callable[[list[TokenEvent]], None]) -> None:
        self._loaded = loaded
        self._recipe = recipe
        self._sink = sink
        self._bytes = TokenBytes(loaded.tokenizer)
        self._slots = [_Slot(number) for number in range(loaded.server.slots)]
        self._width = len(self._slots)
        self._changed = threading.Condition()
        self._queue: deque[GenerationRequest] = deque()
        self._running: dict[str, _Running] = {}
        self._draining = self._closed = False
        self._ledger = Ledger(recipe.batching.max_requests, self._figures())
        self._since_s = 0.0
        self._wakened, self._waker = socket.socketpair()
        self._waker.setblocking(False)  # full, it wakes anyway; and who wakes may hold the lock
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakened, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve_forever, name="engine", daemon=True)

    def start(self) -> None:
        """Begin serving."""
        self._thread.start()

    def warm_up(self) -> str | None:
        """Decode a few tokens before ``start``; no kernel's name comes of it. Raises LoadFailed when none come."""
        ordinary = (each for each in range(self._loaded.vocab_size) if each not in self._loaded.special_ids)
        prompt = tuple(next(ordinary) for _ in range(8))
        request = GenerationRequest("warm-up", prompt, _WARM_UP_TOKENS, Sampling(temperature=0), ignore_eos=True)
        documents = self._loaded.server.complete(whole_body(request, (), 0, _WARM_UP_TOKENS)).read_all()
        if len(documents[0]["tokens"]) != _WARM_UP_TOKENS:
            raise LoadFailed("llama.cpp generated nothing with this model.", "The worker's log says more.")
        return None

    @property
    def kernel_name(self) -> str | None:
        """llama.cpp does not tell."""
        return None

    preparation = None

    @property
    def mode_name(self) -> str:
        """How requests share the model now."""
        if self._recipe.batching.mode == "off":
            return "off"
        return f"continuous, {self._width} slots"

    def submit(self, request: GenerationRequest) -> None:
        """Accept a request. Raises RequestRejected or ContextTooLong for one that cannot be served, QueueFull."""
        require_servable(request, self._loaded)
        room = self._loaded.max_context - len(request.prompt)
        request = replace(request, max_tokens=min(request.max_tokens, room))
        with self._changed:
            held = len(self._queue) + len(self._running)
            if self._draining or self._closed:
                raise QueueFull("The worker is shutting down.", "Send the request to another worker.")
            if held >= self._ledger.max_requests:
                raise QueueFull(f"The queue is full: {held} requests are held.", "Try again in a moment.")
            self._queue.append(request)
        self._wake()

    def cancel(self, request_id: str) -> None:
        """Stop a queued or running request; it ends with finish "cancelled". Unknown ids are ignored."""
        with self._changed:
            running = self._running.get(request_id)
            if running is not None:
                running.cancelled = True
                self._wake()
                return
            queued = next((request for request in self._queue if request.id == request_id), None)
            if queued is None:
                return
            self._queue.remove(queued)
            event = self._ledger.end(queued, "cancelled", time.perf_counter())
            self._changed.notify_all()
        self._sink([event])

    def stats(self) -> EngineStats:
        """Counters and what is going on now."""
        with self._changed:
            return replace(self._ledger.stats(), running=len(self._running), queued=len(self._queue))

    def apply_live(self, recipe: Recipe) -> None:
        """Take over batching and prefix cache. Raises RequestRejected for what llama.cpp cannot do so."""
        for field_name, reason, hint in llama_cpp.unread(recipe):
            raise RequestRejected(f"{field_name}: {reason}", hint, param=field_name)
        width = llama_cpp.slots(recipe)
        if recipe.batching.mode != self._recipe.batching.mode and width > len(self._slots):
            raise RequestRejected(
                f"llama.cpp allocated {len(self._slots)} slot{'s' if len(self._slots) > 1 else ''} when it loaded, "
                f"and continuous needs {width}.",
                "Load the Recipe anew.",
                param="batching.mode",
            )
        with self._changed:
            self._recipe = recipe
            self._width = min(width, len(self._slots))
            self._ledger.max_requests = recipe.batching.max_requests
        self._wake()

    def drain(self, timeout_s: float) -> bool:
        """Accept nothing more and wait for what is held; whether all of it ended in time."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._running and not self._queue, timeout_s)

    def close(self) -> None:
        """End everything held as cancelled, stop the thread and give the model's memory back."""
        with self._changed:
            self._closed = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        self._selector.close()
        self._wakened.close()
        self._waker.close()
        self._loaded.server.close()

    def profile(self, plan: ProfilePlan, folder: Path, timeout_s: float) -> tuple[RawTrace, ...]:
        """llama.cpp has no trace of its operators. Raises McpError."""
        raise McpError(
            "llama.cpp records no trace of its operators.", "Profile the Recipe with engine transformers."
        )

    def stop_profile(self) -> None:
        """There never is one."""

    # On the engine's thread

    def _serve_forever(self) -> None:
        while not self._closed:
            self._end(self._cancelled(), "cancelled")
            self._begin_queued()
            ready = self._wait()
            if ready:
                self._step(ready)
        self._end(list(self._running.values()), "cancelled")
        with self._changed:
            events = [self._ledger.end(each, "cancelled", time.perf_counter()) for each in self._queue]
            self._queue.clear()
            self._changed.notify_all()
        self._deliver(events)

    def _wait(self) -> list[_Running]:
        """Those whose answers have something to read; none when woken for another reason."""
        found = self._selector.select()
        answers = [key.data for key, _ in found if key.data is not None]
        if answers and len(answers) < len(self._running):
            time.sleep(_STEP_SETTLES_S)
            found = self._selector.select(0)
        if any(key.data is None for key, _ in found):
            self._wakened.recv(4096)
        return [key.data for key, _ in found if key.data is not None]

    def _begin_queued(self) -> None:
        while True:
            with self._changed:
                if not self._queue or len(self._running) >= self._width:
                    return
                request = self._queue.popleft()
                try:
                    self._begin(request)
                    continue
                except OSError as error:
                    _log.warning("llama.cpp could not be asked: %r", error)
                cause = Failure.of(McpError("llama.cpp does not answer.", "The worker's log says more."))
                event = self._ledger.end(request, "error", time.perf_counter(), cause)
                self._changed.notify_all()
            self._deliver([event])

    def _begin(self, request: GenerationRequest) -> None:
        """Called with the lock held: give it a slot, and ask. Raises OSError, and then it holds none."""
        slot = self._slot_for(request)
        course, body = self._first_question(request, slot)
        if not self._running:
            self._since_s = time.perf_counter()
        answer = self._loaded.server.complete(body)
        slot.busy, slot.tenant = True, request.tenant
        running = self._running[request.id] = _Running(course, slot, answer)
        self._selector.register(answer, selectors.EVENT_READ, running)

    def _first_question(self, request: GenerationRequest, slot: _Slot) -> tuple[Course, dict[str, Any]]:
        if request.prompt_logprobs is not None:
            scored = ScoredCourse(request, self._loaded.eos_ids, self._bytes)
            assert scored.position is not None, "a second token"
            return scored, score_body(request, scored.position, slot.number)
        reuse = self._recipe.prefix_cache and slot.tenant == request.tenant
        course = Course(request, self._loaded.eos_ids, self._bytes)
        return course, stream_body(request, (), slot.number, reuse=reuse)

    def _slot_for(self, request: GenerationRequest) -> _Slot:
        """The free slot that holds most of the prompt, else the one that was not used for longest."""
        free = [slot for slot in self._slots if not slot.busy]
        return max(free, key=lambda slot: (slot.shared(request) if self._recipe.prefix_cache else 0, -slot.used_s))

    def _step(self, ready: Sequence[_Running]) -> None:
        """Read what has come in and hand it over; whatever happens, each request ends in exactly one event."""
        outcomes: list[Outcome] = []
        started: list[tuple[GenerationRequest, int]] = []
        computed = 0
        for running in ready:
            begun = running.course.begun
            outcomes += self._read(running)
            computed += running.course.take_computed()
            if running.course.begun and not begun:
                started.append((running.course.request, running.course.cached))
        batch = sum(each.course.begun for each in self._running.values())
        now_s = time.perf_counter()
        with self._changed:
            step = StepOutcome(tuple(outcomes), tuple(started), computed, batch)
            events = self._ledger.take(step, self._since_s, now_s)
            self._since_s = now_s
            self._release(each for each in ready if each.course.ended)
            self._ledger.show(self._figures(), len(self._queue))
        self._deliver(events)

    def _read(self, running: _Running) -> list[Outcome]:
        course = running.course
        try:
            outcomes = [outcome for document in running.answer.read() for outcome in course.read(document)]
            if not course.ended:
                self._ask_again(running)
        except McpError as error:
            return [course.failed(error)]
        except Exception as error:  # noqa: BLE001 - the thread's boundary: requests may fail, the engine goes on
            _log.warning("an answer of llama.cpp could not be read: %r", error)
            return [course.failed(McpError("llama.cpp's answer broke off.", "The worker's log says more."))]
        return outcomes

    def _ask_again(self, running: _Running) -> None:
        """Where the server could not tell some tokens' ids: ask for those whole, then go on. Of a prompt that is
        scored: ask for its next position."""
        course, number = running.course, running.slot.number
        if isinstance(course, ScoredCourse) and course.unasked and course.position is not None:
            body = score_body(course.request, course.position, number)
        elif course.untold:
            body = whole_body(course.request, course.reply, number, course.untold)
        elif course.unfinished:
            body = stream_body(course.request, course.reply, number, reuse=True)
        elif running.answer.ended:
            raise McpError("llama.cpp ended an answer early.", "The worker's log says more.")
        else:
            return
        self._hang_up(running)
        course.asked_again()
        running.answer = self._loaded.server.complete(body)
        self._selector.register(running.answer, selectors.EVENT_READ, running)

    def _cancelled(self) -> list[_Running]:
        with self._changed:
            return [running for running in self._running.values() if running.cancelled]

    def _end(self, ending: Sequence[_Running], finish: FinishReason) -> None:
        """End requests from outside a step."""
        if not ending:
            return
        with self._changed:
            events = [self._ledger.end(each.course.request, finish, time.perf_counter()) for each in ending]
            self._release(ending)
            self._ledger.show(self._figures(), len(self._queue))
        self._deliver(events)

    def _release(self, ended: Iterable[_Running]) -> None:
        """Called with the lock held: what has ended is held no more, and its slot is free."""
        for running in ended:
            self._hang_up(running)
            request, slot = running.course.request, running.slot
            slot.busy, slot.used_s = False, time.perf_counter()
            slot.tokens = (*request.prompt, *running.course.reply)
            self._running.pop(request.id, None)
        self._changed.notify_all()

    def _hang_up(self, running: _Running) -> None:
        if running.answer.fileno() >= 0:  # else it was hung up when asking again failed
            self._selector.unregister(running.answer)
            running.answer.close()

    def _deliver(self, events: list[TokenEvent]) -> None:
        if events:
            self._sink(events)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # closed meanwhile, or full of bytes that wake
            self._waker.send(b"\0")

    def _figures(self) -> ModeFigures:
        courses = [running.course for running in self._running.values()]
        return ModeFigures(
            running=len(courses),
            kv_tokens=sum(len(course.request.prompt) + len(course.reply) for course in courses),
            kv_capacity_tokens=len(self._slots) * self._loaded.max_context,
        )
