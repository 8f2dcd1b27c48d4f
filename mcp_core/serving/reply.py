"""Reply: one choice of one request, from token events to pieces of text.

This file does not know about HTTP, JSON or where events come from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mcp_core.errors import Cancelled, McpError, error_from
from mcp_core.generation import GenerationRequest, TokenEvent, TokenLogprob
from mcp_core.monitoring.prometheus import WorkerMetrics
from mcp_core.serving.served_model import ServedModel
from mcp_core.serving.text import Detokenizer, StopStrings

__all__ = ["Piece", "PlacedLogprob", "Reply", "Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one choice, and the engine's own timing in ms; ``cached_tokens`` of the prompt were known."""

    prompt_tokens: int
    completion_tokens: int
    timing: dict[str, float] | None
    cached_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's ``usage``, with ``timing`` beside its fields."""
        document: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
        return document | ({"timing": self.timing} if self.timing else {})


@dataclass(frozen=True, slots=True)
class PlacedLogprob:
    """A token's log-probability and where its text begins in the choice's text, characters."""

    logprob: TokenLogprob
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event adds to one choice. ``usage`` is on the last piece, with ``finish``."""

    choice: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PlacedLogprob, ...]
    finish: Literal["stop", "length"] | None
    usage: Usage | None


class Reply:
    """One choice. ``take`` its events in order; ``ended`` once its engine request has ended.

    ``echo`` is the prompt's text, which comes before the first piece's.
    """

    def __init__(
        self,
        choice: int,
        request: GenerationRequest,
        model: ServedModel,
        stops: Sequence[str],
        metrics: WorkerMetrics,
        echo: str | None = None,
    ) -> None:
        self.choice = choice
        self.request = request
        self.ended = False
        self._model = model
        self._metrics = metrics
        self._echo = echo
        self._detokenizer = Detokenizer(model.tokenizer, request.prompt)
        self._stops = StopStrings(stops)
        self._stopping: Piece | None = None
        self._tokens = 0
        self._characters = len(echo or "")  # of text so far, held back or not
        self._last_token_s: float | None = None

    def abort(self) -> None:
        """The client has gone, or another choice failed: count this one as aborted unless it has ended."""
        if not self.ended:
            self.ended = True
            self._metrics.observe_end("abort", time.perf_counter() - self.request.arrived_s)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met before the engine ended: what it still makes is dropped."""
        return self._stopping is not None

    def take(self, event: TokenEvent) -> Piece | None:
        """The piece that this event gives; None while the end of a stopped request is awaited.

        Raises the McpError that ended the request: the engine's failure, or Cancelled.
        """
        if event.finish is not None:
            self._end(event)
        if self._stopping is not None:
            return self._last(self._stopping, event) if self.ended else None
        if event.finish in ("error", "cancelled"):
            raise _failure(event)
        return self._advance(event)

    def _advance(self, event: TokenEvent) -> Piece | None:
        logprobs = self._prompt_logprobs(event) + self._token_logprob(event)
        echo, self._echo = self._echo or "", None
        text, stopped = self._read(event)
        tokens = () if event.token is None else (event.token,)
        finish: Literal["stop", "length"] | None = "stop" if stopped or event.finish == "stop" else None
        if event.finish == "length" and not stopped:
            finish = "length"
        piece = Piece(self.choice, echo + text, tokens, logprobs, finish, None)
        if event.finish is not None:
            return self._last(piece, event)
        if stopped:
            self._stopping = piece
            return None
        return piece

    def _read(self, event: TokenEvent) -> tuple[str, bool]:
        """The text that may be shown after this event, and whether a stop string ended it."""
        text = ""
        if event.token is not None:
            self._count(event.at_s)
            if not (event.finish == "stop" and event.token in self._model.eos_ids):
                text = self._detokenizer.push(event.token)
        if event.finish is not None:
            text += self._detokenizer.flush()
        self._characters += len(text)
        if self._tokens <= self.request.min_tokens:
            return text, False
        shown, stopped = self._stops.push(text)
        if event.finish is not None and not stopped:
            shown += self._stops.flush()
        return shown, stopped

    def _count(self, at_s: float) -> None:
        if self._last_token_s is None:
            self._metrics.observe_first_token(at_s - self.request.arrived_s)
        else:
            self._metrics.observe_gap(at_s - self._last_token_s)
        self._tokens += 1
        self._last_token_s = at_s

    def _end(self, event: TokenEvent) -> None:
        self.ended = True
        reason = {"cancelled": "abort", "error": "error"}.get(event.finish or "", event.finish or "")
        self._metrics.observe_end(
            "stop" if self.stopped else reason,
            event.at_s - self.request.arrived_s,
            len(self.request.prompt),
            self._tokens + (event.token is not None and not self.stopped),
            event.timing,
        )

    def _last(self, piece: Piece, event: TokenEvent) -> Piece:
        usage = Usage(len(self.request.prompt), self._tokens, event.timing, event.cached_tokens)
        return Piece(piece.choice, piece.text, piece.token_ids, piece.logprobs, piece.finish, usage)

    def _token_logprob(self, event: TokenEvent) -> tuple[PlacedLogprob, ...]:
        if event.logprob is None:
            return ()
        return (PlacedLogprob(event.logprob, self._characters),)

    def _prompt_logprobs(self, event: TokenEvent) -> tuple[PlacedLogprob, ...]:
        """The prompt's own log-probabilities, each at the place of its token in the echoed text."""
        if not event.prompt_logprobs or self._echo is None or self.request.logprobs is None:
            return ()
        # A text prompt is echoed as given, without the special tokens that the tokenizer put around it.
        spelled = self._model.tokenizer.decode(self.request.prompt, skip_special_tokens=False)
        detokenizer = Detokenizer(self._model.tokenizer, skip_special=spelled != self._echo)
        placed, offset = [], 0
        for logprob in event.prompt_logprobs:
            placed.append(PlacedLogprob(logprob, offset))
            offset += len(detokenizer.push(logprob.token))
        return tuple(placed)


def _failure(event: TokenEvent) -> McpError:
    if event.failure is not None:
        return error_from(event.failure.model_dump())
    return Cancelled("The worker stopped this request.", "The worker is ending; send it again later.")
