"""FakeEngine and FakeModel: scripted tokens at a fixed pace, for API tests and HTTP timings without torch.

This file does not know about HTTP.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mcp_core.errors import QueueFull
from mcp_core.generation import EngineStats, FinishReason, GenerationRequest, TokenEvent, TokenLogprob
from mcp_core.profile_plan import ProfilePlan
from mcp_core.recipe import Recipe
from mcp_core.results import Effective, Failure
from mcp_core.trace_summary import RawTrace, RecordedStep

__all__ = ["FakeEngine", "FakeModel", "byte_tokenizer"]

BOS, EOS = 256, 257
_CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """One token a byte, then <|bos|> 256 and <|eos|> 257."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ("<|bos|>", "<|eos|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class FakeModel:
    """What ``served_model.ServedModel`` asks for, with a byte tokenizer and no weights."""

    tokenizer: Tokenizer = field(default_factory=byte_tokenizer)
    chat_template: str | None = _CHAT_TEMPLATE
    template_tokens: Mapping[str, str] = field(default_factory=lambda: {"bos_token": "<|bos|>"})
    eos_ids: frozenset[int] = frozenset({EOS})
    special_ids: frozenset[int] = frozenset({BOS, EOS})
    vocab_size: int = 258
    max_context: int = 1024
    weights_bytes: int = 0
    title: str = "Fake"
    random_weights: bool = True
    effective: Effective = Effective(  # noqa: RUF009 - frozen
        device="cpu",
        dtype="fp32",
        scheme="none",
        attention="none",
        kv_kind="dynamic",
        max_context=1024,
        threads=1,
        batching_mode="continuous",
        engine="fake",
    )


@dataclass(slots=True)
class _Held:
    """One request in the fake. ``count`` tokens are out; times are time.perf_counter()."""

    request: GenerationRequest
    accepted_s: float
    count: int = 0
    first_s: float = 0.0
    cancelled: bool = False


class FakeEngine:
    """Gives every held request the next token of ``script`` once a step, and begins it again at its end.

    A step takes ``token_s``; a request's first comes ``prefill_s`` after it was accepted. Steps keep to an absolute
    clock; without ``catches_up`` each begins when the one before was handed over, as a model's do, and time that
    a server takes from this thread is lost. The EOS token ends a request unless that ignores it or has too few
    tokens. ``fail_at`` ends a request with an error instead of its token of that number, from 0. ``requests`` are
    those accepted, in order.
    """

    def __init__(
        self,
        sink: Callable[[list[TokenEvent]], None],
        *,
        script: Sequence[int],
        token_s: float = 0.001,
        prefill_s: float = 0.0,
        fail_at: int | None = None,
        max_requests: int = 64,
        catches_up: bool = True,
    ) -> None:
        self.requests: list[GenerationRequest] = []
        self._sink = sink
        self._script = tuple(script)
        self._token_s = token_s
        self._prefill_s = prefill_s
        self._fail_at = fail_at
        self._catches_up = catches_up
        self._changed = threading.Condition()
        self._held: dict[str, _Held] = {}
        self._stats = EngineStats(max_requests=max_requests, kv_capacity_tokens=1024)
        self._tokens_out = 0  # not in _stats: replacing that for every token would cost more than the token
        self._draining = self._closed = False
        self._thread = threading.Thread(target=self._run, name="fake-engine", daemon=True)

    def start(self) -> None:
        """Begin serving."""
        self._thread.start()

    def submit(self, request: GenerationRequest, /) -> None:
        """Accept a request. Raises QueueFull."""
        with self._changed:
            if self._draining or self._closed or len(self._held) >= self._stats.max_requests:
                raise QueueFull(
                    f"The queue is full: {len(self._held)} requests are held.", "Try again in a moment."
                )
            self.requests.append(request)
            self._held[request.id] = _Held(request, time.perf_counter())
            self._changed.notify_all()

    def cancel(self, request_id: str, /) -> None:
        """End a request at the next step; unknown ids are ignored."""
        with self._changed:
            if request_id in self._held:
                self._held[request_id].cancelled = True

    def stats(self) -> EngineStats:
        """Counters and what is going on now."""
        with self._changed:
            running = sum(held.count > 0 for held in self._held.values())
            queued, out = len(self._held) - running, self._tokens_out
            return replace(self._stats, running=running, queued=queued, output_tokens_total=out)

    @property
    def mode_name(self) -> str:
        """As it says of itself."""
        return "continuous"

    kernel_name = None
    preparation = None

    def apply_live(self, recipe: Recipe, /) -> None:
        """Change how many requests may be held."""
        with self._changed:
            self._stats = replace(self._stats, max_requests=recipe.batching.max_requests)

    def drain(self, timeout_s: float, /) -> bool:
        """Accept nothing more and wait for what is held; whether all of it ended in time."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._held, timeout_s)

    def close(self) -> None:
        """End everything as cancelled and stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=30)

    def profile(self, plan: ProfilePlan, folder: Path, timeout_s: float, /) -> tuple[RawTrace, ...]:
        """A Chrome trace of one decode step with nothing in it but the step."""
        path = folder / f"fake-{plan.steps}.json"
        step = {"ph": "X", "name": "engine step", "pid": 1, "tid": 1, "ts": 0.0, "dur": 9.0}
        path.write_text(json.dumps({"traceEvents": [step]}))
        now_s = time.perf_counter()
        steps = (RecordedStep(began_s=now_s - 9e-6, ended_s=now_s, prefill_tokens=0, batch=1),)
        return (RawTrace(path=str(path), steps=steps),)

    def stop_profile(self) -> None:
        """It takes no time."""

    def _run(self) -> None:
        step_s = time.perf_counter()
        while True:
            with self._changed:
                if not self._held:
                    self._changed.wait_for(lambda: self._closed or bool(self._held))
                    step_s = time.perf_counter()
            step_s = (step_s if self._catches_up else time.perf_counter()) + self._token_s
            time.sleep(max(0.0, step_s - time.perf_counter()))
            with self._changed:
                events = [event for held in list(self._held.values()) if (event := self._step(held))]
                ended = self._closed
                self._changed.notify_all()
            if events:
                self._sink(events)
            if ended:
                return

    def _step(self, held: _Held) -> TokenEvent | None:
        """The request's next event; None while it waits for its prefill. Called with the lock held."""
        now_s = time.perf_counter()
        if held.cancelled or self._closed:
            return self._end(held, TokenEvent(held.request.id, now_s, finish="cancelled"))
        if now_s < held.accepted_s + self._prefill_s:
            return None
        if held.count == self._fail_at:
            failure = Failure(kind="oom", message="Memory ran out while generating.", hint="Shorten the context.")
            return self._end(held, TokenEvent(held.request.id, now_s, finish="error", failure=failure))
        return self._token(held, now_s)

    def _token(self, held: _Held, now_s: float) -> TokenEvent:
        request, first = held.request, held.count == 0
        scored = _score(request) if first else None
        if first:
            held.first_s = now_s
            self._add(prompt_tokens_total=len(request.prompt))
        if request.max_tokens == 0:
            return self._end(held, TokenEvent(request.id, now_s, finish="length", prompt_logprobs=scored))
        token = self._script[held.count % len(self._script)]
        held.count += 1
        self._tokens_out += 1
        logprob = None if request.logprobs is None else _logprob(token, request.logprobs)
        event = TokenEvent(request.id, now_s, token, _finish(held, token), logprob, scored)
        return event if event.finish is None else self._end(held, event)

    def _end(self, held: _Held, event: TokenEvent) -> TokenEvent:
        del self._held[held.request.id]
        kind = {"cancelled": "cancelled_total", "error": "failed_total"}.get(event.finish or "", "finished_total")
        self._add(**{kind: 1})
        first_s = held.first_s or event.at_s
        timing = {
            "queue_ms": 0.0,
            "prefill_ms": (first_s - held.accepted_s) * 1e3,
            "decode_ms": (event.at_s - first_s) * 1e3,
        }
        return replace(event, timing=timing)

    def _add(self, **counts: int) -> None:
        changed = {name: getattr(self._stats, name) + count for name, count in counts.items()}
        self._stats = replace(self._stats, **changed)


def _finish(held: _Held, token: int) -> FinishReason | None:
    request = held.request
    if token == EOS and not request.ignore_eos and held.count > request.min_tokens:
        return "stop"
    return "length" if held.count >= request.max_tokens else None


def _logprob(token: int, top: int) -> TokenLogprob:
    """The token itself is best, at -0.5; the ids above it follow, each one lower."""
    return TokenLogprob(token, -0.5, tuple((token + rank, -0.5 - rank) for rank in range(top)))


def _score(request: GenerationRequest) -> tuple[TokenLogprob, ...] | None:
    """The prompt's own log-probabilities; its first token has none."""
    if request.prompt_logprobs is None:
        return None
    first, *rest = request.prompt
    return (TokenLogprob(first, None), *(_logprob(token, request.prompt_logprobs) for token in rest))
