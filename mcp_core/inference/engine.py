"""Engine: requests in by a queue, token events out once a step, one thread that owns the model's forward.

How requests share the model is the mode's affair (``batching.py``). This file does not know about HTTP, text or how
a model was loaded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from mcp_core.errors import Busy, ContextTooLong, McpError, OutOfMemory, QueueFull
from mcp_core.generation import EngineStats, FinishReason, GenerationRequest, Preparation, TokenEvent
from mcp_core.inference.batching import Parts, build_mode
from mcp_core.inference.decoding import Decoder
from mcp_core.inference.int8_rows import use_int8_rows
from mcp_core.inference.kv_cache import cache_factory
from mcp_core.inference.ledger import Ledger
from mcp_core.inference.mode import Mode, StepOutcome
from mcp_core.inference.mode_change import ModeChange
from mcp_core.inference.mode_check import ModeCheck
from mcp_core.inference.profiling import Recording
from mcp_core.inference.request_limits import require_fitting, require_servable
from mcp_core.inference.speculation import build_proposer
from mcp_core.inference.step_errors import as_error
from mcp_core.memory.current_device import make_current
from mcp_core.models.loaded import LoadedModel, Report
from mcp_core.profile_plan import ProfilePlan
from mcp_core.recipe import Recipe
from mcp_core.results import Failure
from mcp_core.sections import profile_section
from mcp_core.trace_summary import RawTrace

__all__ = ["Engine", "Sink"]

_log = logging.getLogger(__name__)

# How long running requests may take to end before another mode takes over; s.
SWAP_S = 30.0


class Sink(Protocol):
    """Takes the events of one step, from the engine's thread; must return at once."""

    def __call__(self, events: list[TokenEvent], /) -> None:
        """Take the events."""


class Engine:
    """Serves requests as the Recipe's batching says.

    Every accepted request ends in exactly one event with ``finish`` set. ``report`` hears how far compiling is;
    ``draft`` guesses tokens where the Recipe's speculation asks for it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        recipe: Recipe,
        sink: Sink,
        report: Report = lambda _stage, _part, _text: None,
        draft: LoadedModel | None = None,
    ) -> None:
        self._loaded = loaded
        self._recipe = recipe
        self._sink = sink
        self._report = report
        use_int8_rows(loaded.model)
        proposer = build_proposer(recipe, draft.model if draft else None)
        self._decoder = Decoder(loaded.model, loaded.eos_ids, loaded.max_context, proposer)
        self._new_cache = cache_factory(
            recipe.kv.kind, loaded.model.config, loaded.max_context, window=recipe.kv.window, bits=recipe.kv.bits
        )
        self._changed = threading.Condition()
        self._queue: deque[GenerationRequest] = deque()
        self._in_mode: set[str] = set()
        self._cancelling: set[str] = set()
        self._draining = False
        self._closed = False
        self._recording: Recording | None = None
        self._change: ModeChange | None = None
        self._check = ModeCheck(loaded, self._decoder, self._new_cache)
        try:
            self._mode: Mode = self._build(recipe)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            raise as_error(error) from error
        self._ledger = Ledger(recipe.batching.max_requests, self._mode.figures())
        self._thread = threading.Thread(target=self._serve_forever, name="engine", daemon=True)

    def start(self) -> None:
        """Begin serving."""
        self._thread.start()

    @property
    def mode_name(self) -> str:
        """How requests share the model now."""
        return self._mode.name

    @property
    def kernel_name(self) -> str | None:
        """What computes attention now, where it is not the model's own implementation."""
        return self._mode.kernel

    @property
    def preparation(self) -> Preparation | None:
        """What making decode steps ahead took, in the mode that serves now."""
        return self._mode.preparation

    def warm_up(self) -> str | None:
        """Decode a few tokens before ``start``, so that the first request is not the slow one; the attention
        kernel that was seen in it, if it was sdpa's.

        Raises LoadFailed when the model's log-probabilities are not finite, OutOfMemory when it does not fit,
        and McpError with the cause when it cannot compute at all.
        """
        kernel = self._check.warm_up()
        try:
            self._check.of(self._mode)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            raise as_error(error) from error
        return kernel

    def submit(self, request: GenerationRequest) -> None:
        """Accept a request. Raises RequestRejected or ContextTooLong for one that cannot be served, QueueFull."""
        require_servable(request, self._loaded.vocab_size, self._longest)
        with self._changed:
            held = len(self._queue) + len(self._in_mode)
            if self._draining or self._closed:
                raise QueueFull("The worker is shutting down.", "Send the request to another worker.")
            if held >= self._ledger.max_requests:
                raise QueueFull(f"The queue is full: {held} requests are held.", "Try again in a moment.")
            self._queue.append(request)
            self._changed.notify_all()

    def cancel(self, request_id: str) -> None:
        """Stop a queued or running request; it ends with finish "cancelled". Unknown ids are ignored."""
        with self._changed:
            if request_id in self._in_mode:
                self._cancelling.add(request_id)
                self._changed.notify_all()
                return
            queued = next((request for request in self._queue if request.id == request_id), None)
            if queued is None:
                return
            self._queue.remove(queued)
            event = self._ledger.end(queued, "cancelled", time.perf_counter())
        self._sink([event])

    def stats(self) -> EngineStats:
        """Counters and what is going on now."""
        with self._changed:
            stats = self._ledger.stats()
            # What the mode was given since its last step it does not count yet.
            return replace(stats, queued=len(self._queue) + max(0, len(self._in_mode) - stats.running))

    def apply_live(self, recipe: Recipe, timeout_s: float = SWAP_S) -> None:
        """Serve as ``recipe``'s live fields say from now on; the weights stay.

        Another batching mode or prefix cache is a swap: new requests wait, running ones end first, and those that
        have not after ``timeout_s`` are failed with the reason. Returns when the new mode has passed its check.
        Other limits hold from the next step on; steps that are made ahead are made for more requests first.
        Raises Busy while another change is under way, or the error that it met; then all is as it was.
        """
        with self._changed:
            if self._change is not None or self._closed:
                raise Busy("The batching mode is being changed, or the worker is ending.", "Try again in a moment.")
            change = self._change = ModeChange(self._recipe, recipe, timeout_s, time.monotonic())
            self._changed.notify_all()
        if self._thread.is_alive():
            change.done.wait()
        else:  # before ``start`` nobody else would do it
            self._change_if_asked()
        if change.error is not None:
            raise change.error

    def drain(self, timeout_s: float) -> bool:
        """Accept nothing more and wait for what is held; whether all of it ended in time."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._in_mode and not self._queue, timeout_s)

    def close(self) -> None:
        """End everything held as cancelled and stop the thread."""
        with self._changed:
            self._closed = True
            queued = [self._ledger.end(request, "cancelled", time.perf_counter()) for request in self._queue]
            self._queue.clear()
            self._changed.notify_all()
        if queued:
            self._sink(queued)
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def profile(self, plan: ProfilePlan, folder: Path, timeout_s: float = 300.0) -> tuple[RawTrace, ...]:
        """Record the next steps, whosever requests they serve; the raw traces are written to ``folder``.

        Steps that came until ``timeout_s`` are kept when it is over. Raises Busy while another profile is recorded,
        McpError when nothing was: no step came, or the files could not be written.
        """
        recording = Recording(plan, folder)
        with self._changed:
            if self._recording is not None or self._closed:
                raise Busy("A profile is being recorded, or the worker is ending.", "Try again in a moment.")
            self._recording = recording
        recording.wait(timeout_s)
        with self._changed:
            recording.stop_asked = True  # of this one: somebody else's may have begun
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._recording is not recording)
        return recording.result()

    def stop_profile(self) -> None:
        """End the profile that is being recorded, if there is one; what was recorded so far is kept."""
        with self._changed:
            if self._recording is not None:
                self._recording.stop_asked = True
                self._changed.notify_all()

    # On the engine's thread

    def _serve_forever(self) -> None:
        make_current(self._loaded.model.get_input_embeddings().weight.device)
        while self._wait_for_work():
            self._change_if_asked()
            if self._recording is None:
                self._round()
            else:
                self._round_recorded(self._recording)
        self._end_all("cancelled")
        self._end_recording()
        if self._change is not None:
            self._change.error = Busy("The worker is ending.", "Load the model again.")
            self._change.done.set()

    def _wait_for_work(self) -> bool:
        """Until there is a request, a change, a cancellation or a profile's end to look at; False when closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._queue or self._in_mode or self._change or self._recording_ends()
            )
            pause_s = self._mode.wait_s
            if pause_s > 0 and not self._closed:
                self._changed.wait(pause_s)
            return not self._closed

    def _round(self) -> StepOutcome | None:
        with profile_section("queue"):
            self._feed()
        return self._step()

    def _round_recorded(self, recording: Recording) -> None:
        if not recording.stop_asked:
            recording.step(self._round)
        if self._recording_ends():
            self._end_recording()

    def _recording_ends(self) -> bool:
        recording = self._recording
        return recording is not None and (recording.ended or recording.stop_asked)

    def _end_recording(self) -> None:
        if self._recording is None:
            return
        self._recording.finish()
        with self._changed:
            self._recording = None
            self._changed.notify_all()

    def _feed(self) -> None:
        """Give the mode what it has room for."""
        too_long = []
        with self._changed:
            while self._queue and self._change is None and self._mode.room > 0:
                request = self._queue.popleft()
                try:
                    require_fitting(request, self._longest)
                except ContextTooLong as error:  # it was accepted before another mode took over
                    too_long.append(self._ledger.end(request, "error", time.perf_counter(), Failure.of(error)))
                    continue
                self._mode.add(request)
                self._in_mode.add(request.id)
        if too_long:
            self._sink(too_long)

    def _step(self) -> StepOutcome | None:
        """One step of the mode; as ``_done``."""
        self._drop_cancelled()
        return self._done(self._mode.step)

    def _done(self, work: Callable[[], StepOutcome]) -> StepOutcome | None:
        """Do a step, or the rest of one, and deliver what it did; None when it failed.

        Whatever happens, each request that ends does so in exactly one event.
        """
        began_s = time.perf_counter()
        try:
            outcome = work()
        except Exception as error:  # noqa: BLE001 - the thread's boundary: requests may fail, the engine goes on
            _log.exception("a step failed")
            self._fail(as_error(error))
            return None
        with profile_section("delivery"):
            with self._changed:
                events = self._ledger.take(outcome, began_s, time.perf_counter())
                self._settle(events)
            if events:
                self._sink(events)
        return outcome

    def _drop_cancelled(self) -> None:
        with self._changed:
            asked, self._cancelling = self._cancelling, set()
            dropped = [request for each in asked if (request := self._mode.drop(each)) is not None]
            events = [self._ledger.end(request, "cancelled", time.perf_counter()) for request in dropped]
            self._settle(events)
        if events:
            self._sink(events)

    def _fail(self, error: McpError) -> None:
        """The requests of the step that was tried end with it; all, where it is not known which those were."""
        tried = [request for request in self._mode.at_work() if request.id in self._in_mode]
        requests = tried or self._mode.held()
        _log.warning("%d requests failed: %s", len(requests), error.message)
        if isinstance(error, OutOfMemory) and torch.cuda.is_available():
            torch.cuda.empty_cache()
        failure = Failure.of(error)
        with self._changed:
            for request in requests:
                self._mode.drop(request.id)
            events = [self._ledger.end(request, "error", time.perf_counter(), failure) for request in requests]
            self._settle(events)
        self._sink(events)

    def _end_all(self, finish: FinishReason, failure: Failure | None = None) -> None:
        """Everything in the mode ends now."""
        with self._changed:
            requests = self._mode.held()
            for request in requests:
                self._mode.drop(request.id)
            events = [self._ledger.end(request, finish, time.perf_counter(), failure) for request in requests]
            self._settle(events)
        if events:
            self._sink(events)

    def _settle(self, events: Sequence[TokenEvent]) -> None:
        """Called with the lock held: what has ended is held no more; the figures are those of now."""
        ended = {event.request_id for event in events if event.finish is not None}
        self._in_mode -= ended
        self._cancelling -= ended
        self._ledger.show(self._mode.figures(), len(self._queue))
        if ended:
            self._changed.notify_all()

    @property
    def _longest(self) -> int:
        """Prompt and reply together, tokens."""
        return min(self._loaded.max_context, self._mode.longest)

    def _is_cancelled(self, request_id: str) -> bool:
        return self._closed or request_id in self._cancelling

    # Modes

    def _build(self, recipe: Recipe) -> Mode:
        parts = Parts(self._loaded, recipe, self._decoder, self._new_cache, self._is_cancelled, self._report)
        return build_mode(parts)

    def _change_if_asked(self) -> None:
        change = self._change
        if change is None:
            return
        if not change.is_swap:
            self._done(self._mode.pause)
            change.limit(self._mode)
        elif not self._in_mode:
            self._mode = change.swap(self._mode, self._build, self._check.of)
        elif time.monotonic() - change.asked_s < change.timeout_s:
            return
        else:
            cause = McpError("The batching mode was changed while this request ran.", "Send it again.")
            self._end_all("error", Failure.of(cause))
            self._mode = change.swap(self._mode, self._build, self._check.of)
        with self._changed:
            if change.error is None:
                self._recipe = change.recipe
                self._ledger.max_requests = change.recipe.batching.max_requests
            self._change = None
            self._ledger.show(self._mode.figures(), len(self._queue))
            self._changed.notify_all()
        change.done.set()
