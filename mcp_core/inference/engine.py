"""Engine: requests in by a queue, token events out once a step, one thread that owns the model's forward.

This file does not know about HTTP, text or how a model was loaded.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import torch

from mcp_core.errors import ContextTooLong, LoadFailed, McpError, OutOfMemory, QueueFull, RequestRejected
from mcp_core.generation import EngineStats, FinishReason, GenerationRequest, Sampling, TokenEvent
from mcp_core.inference.decoding import Decoder, Step
from mcp_core.inference.kv_cache import cache_factory
from mcp_core.inference.tracing import trace_to
from mcp_core.memory.attention import backend_in, backend_words
from mcp_core.models.load_errors import first_line, is_out_of_memory
from mcp_core.models.loaded import LoadedModel
from mcp_core.recipe import Recipe
from mcp_core.results import Failure

__all__ = ["Engine", "Sink"]

Outcome = Literal["finished", "cancelled", "failed"]

_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes the events of one step, from the engine's thread; must return at once."""

    def __call__(self, events: list[TokenEvent], /) -> None:
        """Take the events."""


class Engine:
    """Serves one request at a time, in order of arrival (batching mode off).

    Every accepted request ends in exactly one event with ``finish`` set.
    """

    def __init__(self, loaded: LoadedModel, recipe: Recipe, sink: Sink) -> None:
        self._loaded = loaded
        self._sink = sink
        self._decoder = Decoder(loaded.model, loaded.eos_ids, loaded.max_context)
        self._new_cache = cache_factory(
            recipe.kv.kind, loaded.model.config, loaded.max_context, window=recipe.kv.window, bits=recipe.kv.bits
        )
        self._changed = threading.Condition()
        self._queue: deque[GenerationRequest] = deque()
        self._running: GenerationRequest | None = None
        self._cancelled = False
        self._draining = False
        self._closed = False
        self._traces: dict[str, Path] = {}
        self._stats = EngineStats(max_requests=recipe.batching.max_requests, kv_capacity_tokens=loaded.max_context)
        self._thread = threading.Thread(target=self._serve_forever, name="engine", daemon=True)

    def start(self) -> None:
        """Begin serving."""
        self._thread.start()

    def warm_up(self) -> str | None:
        """Decode a few tokens before ``start``, so that the first request is not the slow one; the attention
        kernel that was seen in it, if it was sdpa's.

        Raises LoadFailed when the model's log-probabilities are not finite, OutOfMemory when it does not fit,
        and McpError with the cause when it cannot compute at all.
        """
        request = GenerationRequest(
            "warm-up", self._probe_prompt(), 4, Sampling(temperature=0), 4, True, logprobs=0
        )
        try:
            running = self._decoder.steps(request, self._new_cache(), lambda: False)
            first, prefill = backend_in(lambda: next(running), self._loaded.model)
            rest, decode = backend_in(lambda: list(running), self._loaded.model)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            raise _as_error(error) from error
        steps = (first, *rest)
        logprobs = [step.logprob.logprob for step in steps if step.logprob and step.logprob.logprob is not None]
        if not all(-1e30 < logprob <= 1e-3 for logprob in logprobs):
            raise LoadFailed(
                f"The loaded model computes no usable probabilities in {self._loaded.effective.dtype}.",
                "Choose bf16 or fp32, or another quantization scheme.",
            )
        return backend_words(prefill, decode)

    def submit(self, request: GenerationRequest) -> None:
        """Accept a request. Raises RequestRejected or ContextTooLong for one that cannot be served, QueueFull."""
        self._validate(request)
        with self._changed:
            held = len(self._queue) + (self._running is not None)
            if self._draining or self._closed:
                raise QueueFull("The worker is shutting down.", "Send the request to another worker.")
            if held >= self._stats.max_requests:
                raise QueueFull(f"The queue is full: {held} requests are held.", "Try again in a moment.")
            self._queue.append(request)
            self._changed.notify_all()

    def cancel(self, request_id: str) -> None:
        """Stop a queued or running request; it ends with finish "cancelled". Unknown ids are ignored."""
        with self._changed:
            if self._running is not None and self._running.id == request_id:
                self._cancelled = True
                return
            queued = next((request for request in self._queue if request.id == request_id), None)
            if queued is None:
                return
            self._queue.remove(queued)
            self._count("cancelled")
        self._sink([_ending(queued, "cancelled")])

    def stats(self) -> EngineStats:
        """Counters and what is going on now."""
        with self._changed:
            return replace(self._stats, running=int(self._running is not None), queued=len(self._queue))

    def set_max_requests(self, max_requests: int) -> None:
        """Change how many requests may be held at once; those already held stay."""
        with self._changed:
            self._stats = replace(self._stats, max_requests=max_requests)

    def drain(self, timeout_s: float) -> bool:
        """Accept nothing more and wait for what is held; whether all of it ended in time."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: self._running is None and not self._queue, timeout_s)

    def close(self) -> None:
        """End everything held as cancelled and stop the thread."""
        with self._changed:
            self._closed = self._cancelled = True
            queued = list(self._queue)
            self._queue.clear()
            for _ in queued:
                self._count("cancelled")
            self._changed.notify_all()
        if queued:
            self._sink([_ending(request, "cancelled") for request in queued])
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def profile(self, steps: int, folder: Path, timeout_s: float = 300.0) -> Path:
        """Trace a prefill of 64 tokens and ``steps`` decode steps; returns the Chrome trace (JSON) in ``folder``.

        Waits its turn like a request. Raises QueueFull, or McpError when nothing was recorded: time ran out, the
        model failed, the engine was closed, or the file could not be written.
        """
        request = GenerationRequest(
            f"profile-{uuid.uuid4().hex}", self._probe_prompt(64), steps, Sampling(temperature=0), steps, True
        )
        path = folder / f"{request.id}.json"
        self._traces[request.id] = path
        try:
            self.submit(request)
            with self._changed:
                self._changed.wait_for(lambda: self._closed or request.id not in self._traces, timeout_s)
        finally:
            unfinished = self._traces.pop(request.id, None)
        if unfinished or not path.exists():
            self.cancel(request.id)
            raise McpError("The trace was not recorded.", "Try fewer steps while the worker is idle.")
        return path

    def _probe_prompt(self, tokens: int = 16) -> tuple[int, ...]:
        """A fixed prompt of ordinary tokens that fits any context."""
        ordinary = [token for token in range(self._loaded.vocab_size) if token not in self._loaded.special_ids]
        length = min(tokens, self._loaded.max_context // 2)
        return tuple(ordinary[(7 * index + 5) % len(ordinary)] for index in range(length))

    def _validate(self, request: GenerationRequest) -> None:
        if not request.prompt:
            raise RequestRejected("The prompt is empty.", "Send at least one token.", param="prompt")
        if len(request.prompt) >= self._loaded.max_context + (request.max_tokens == 0):
            raise ContextTooLong(
                f"The prompt has {len(request.prompt)} tokens; the context holds {self._loaded.max_context}.",
                "Shorten it, or raise kv.max_context in the Recipe.",
                param="prompt",
            )
        if min(request.prompt) < 0 or max(request.prompt) >= self._loaded.vocab_size:
            raise RequestRejected(
                f"Token ids go from 0 to {self._loaded.vocab_size - 1}.", "Check the tokenizer.", param="prompt"
            )

    def _serve_forever(self) -> None:
        while (request := self._take()) is not None:
            self._serve(request)
            with self._changed:
                self._traces.pop(request.id, None)
                self._changed.notify_all()

    def _take(self) -> GenerationRequest | None:
        """The next request, waiting for one; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._queue))
            if self._closed:
                return None
            self._running, self._cancelled = self._queue.popleft(), False
            return self._running

    def _serve(self, request: GenerationRequest) -> None:
        """Run one request to its end; whatever happens, exactly one event says how it ended."""
        clock = _Clock(request)
        try:
            with trace_to(self._traces.get(request.id)):
                for step in self._decoder.steps(request, self._new_cache(), lambda: self._cancelled):
                    self._emit(request, step, clock)
        except Exception as error:  # noqa: BLE001 - the thread's boundary: a request may fail, the engine goes on
            failure = _as_error(error)
            _log.warning("request %s failed: %s", request.id, failure.message)
            if self._running is request:  # else it has ended, and only its trace could not be written
                self._fail(request, failure)

    def _emit(self, request: GenerationRequest, step: Step, clock: _Clock) -> None:
        with self._changed:
            self._stats = clock.count(step, self._stats)
            if step.finish is not None:
                self._end("cancelled" if step.finish == "cancelled" else "finished")
        event = TokenEvent(
            request.id,
            clock.now_s,
            token=step.token,
            finish=step.finish,
            logprob=step.logprob,
            prompt_logprobs=step.prompt_logprobs,
            timing=clock.timing() if step.finish else None,
        )
        self._sink([event])

    def _fail(self, request: GenerationRequest, error: McpError) -> None:
        if isinstance(error, OutOfMemory) and torch.cuda.is_available():
            torch.cuda.empty_cache()
        with self._changed:
            self._end("failed")
        self._sink([replace(_ending(request, "error"), failure=Failure.of(error))])

    def _end(self, outcome: Outcome) -> None:
        """Called with the lock held: count the running request's end."""
        self._running = None
        self._stats = replace(self._stats, kv_tokens=0)
        self._count(outcome)
        self._changed.notify_all()

    def _count(self, outcome: Outcome) -> None:
        """Called with the lock held: one more request ended that way."""
        total = f"{outcome}_total"
        self._stats = replace(self._stats, **{total: getattr(self._stats, total) + 1})


class _Clock:
    """The engine's own clock of one request, in seconds of time.perf_counter()."""

    def __init__(self, request: GenerationRequest) -> None:
        self._prompt_tokens = len(request.prompt)
        self.now_s = time.perf_counter()
        self._queue_s = max(0.0, self.now_s - request.arrived_s) if request.arrived_s else 0.0
        self._prefill_s: float | None = None
        self._decode_s = 0.0
        self._tokens = 0

    def count(self, step: Step, stats: EngineStats) -> EngineStats:
        """Take a step's time and tokens: the first step is prefill, later ones are decode. Returns the counters."""
        self.now_s = time.perf_counter()
        token = int(step.token is not None)
        self._tokens += token
        stats = replace(
            stats,
            kv_tokens=self._prompt_tokens + self._tokens,
            output_tokens_total=stats.output_tokens_total + token,
        )
        if self._prefill_s is None:
            self._prefill_s = step.seconds
            prompt_tokens = 0 if step.finish == "cancelled" else self._prompt_tokens  # it was not computed whole
            return replace(
                stats,
                prompt_tokens_total=stats.prompt_tokens_total + prompt_tokens,
                prefill_s_total=stats.prefill_s_total + step.seconds,
            )
        self._decode_s += step.seconds
        return replace(
            stats,
            decode_s_total=stats.decode_s_total + step.seconds,
            decode_steps_total=stats.decode_steps_total + token,
        )

    def timing(self) -> dict[str, float]:
        """ms, for usage.timing."""
        return {
            "queue_ms": self._queue_s * 1e3,
            "prefill_ms": (self._prefill_s or 0.0) * 1e3,
            "decode_ms": self._decode_s * 1e3,
        }


def _ending(request: GenerationRequest, finish: FinishReason) -> TokenEvent:
    return TokenEvent(request.id, time.perf_counter(), finish=finish)


def _as_error(error: Exception) -> McpError:
    """Foreign errors of a forward pass, mapped once."""
    if is_out_of_memory(error):
        return OutOfMemory(
            "Memory ran out while generating.",
            "Shorten the context (kv.max_context), choose a smaller dtype or scheme, or unload other models.",
        )
    if isinstance(error, McpError):
        return error
    return McpError(
        f"Generation failed: {type(error).__name__}: {first_line(error)}", "The worker's log says more."
    )
