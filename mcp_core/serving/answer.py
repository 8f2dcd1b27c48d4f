"""Answers in OpenAI's JSON: chunks of a stream and whole answers, for chat and for completions.

Beside OpenAI's fields a choice has ``token_ids``, and its last chunk has ``usage`` with ``timing`` (ms).
A chunk is made for every token, so it is put together from text; only what is rare in it (log-probabilities, usage)
goes through json, and nothing through pydantic. This file does not know about HTTP.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Protocol

from mcp_core.serving.reply import Piece, PlacedLogprob, Usage
from mcp_core.serving.text import TokenTexts

__all__ = ["AnswerForm", "ChatForm", "CompletionForm", "encode", "total_usage"]

Document = dict[str, Any]

# ASCII only, as ``quote``: clients that split lines at any Unicode line end would break events.
encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

_FINISH = {None: "null", "stop": '"stop"', "length": '"length"'}

# JSON has no infinity; OpenAI writes this for a token that is next to impossible.
_LOWEST_LOGPROB = -9999.0


class AnswerForm(Protocol):
    """How pieces are written."""

    def chunk(self, piece: Piece) -> str:
        """One chunk of a stream, as JSON in ASCII."""

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> Document:
        """The whole answer; ``choices`` are the pieces of each."""

    def usage_chunk(self, usage: Usage) -> str:
        """The chunk without choices that ``stream_options.include_usage`` asks for, as JSON."""


def total_usage(choices: Sequence[Usage], per_prompt: int) -> Usage:
    """Of a request: every prompt counted once, every choice's tokens; timing where there is one choice."""
    prompt_tokens = sum(usage.prompt_tokens for usage in choices[::per_prompt])
    completion_tokens = sum(usage.completion_tokens for usage in choices)
    cached_tokens = sum(usage.cached_tokens for usage in choices[::per_prompt])
    timing = choices[0].timing if len(choices) == 1 else None
    return Usage(prompt_tokens, completion_tokens, timing, cached_tokens)


class _Form(ABC):
    """What both forms share. ``with_logprobs`` fills in the choices' ``logprobs``."""

    chunk_object: str
    whole_object: str

    def __init__(self, exchange_id: str, model_id: str, texts: TokenTexts, *, with_logprobs: bool) -> None:
        self._head = {"id": exchange_id, "created": int(time.time()), "model": model_id}
        # What every chunk of the answer begins with.
        self._opening = encode({**self._head, "object": self.chunk_object})[:-1] + ',"choices":['
        self._texts = texts
        self._with_logprobs = with_logprobs

    def chunk(self, piece: Piece) -> str:
        """One chunk of a stream, as JSON in ASCII."""
        logprobs = encode(self._logprobs(piece.logprobs)) if self._with_logprobs else "null"
        usage = "" if piece.usage is None else f',"usage":{encode(piece.usage.as_dict())}'
        token_ids = ",".join(map(str, piece.token_ids))
        return (
            f'{self._opening}{{"index":{piece.choice},{self._delta(piece)},"logprobs":{logprobs},'
            f'"finish_reason":{_FINISH[piece.finish]},"token_ids":[{token_ids}]}}]{usage}}}'
        )

    def usage_chunk(self, usage: Usage) -> str:
        """The chunk without choices that ``stream_options.include_usage`` asks for, as JSON."""
        return f'{self._opening}],"usage":{encode(usage.as_dict())}}}'

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> Document:
        """The whole answer; ``choices`` are the pieces of each."""
        written = [self._choice(pieces) for pieces in choices]
        return {**self._head, "object": self.whole_object, "choices": written, "usage": usage.as_dict()}

    def _choice(self, pieces: Sequence[Piece]) -> Document:
        placed = tuple(logprob for piece in pieces for logprob in piece.logprobs)
        return {
            "index": pieces[0].choice,
            **self._content("".join(piece.text for piece in pieces)),
            "logprobs": self._logprobs(placed),
            "finish_reason": pieces[-1].finish,
            "token_ids": [token for piece in pieces for token in piece.token_ids],
        }

    @abstractmethod
    def _delta(self, piece: Piece) -> str:
        """What one piece adds to a choice, as a member of a JSON object."""

    @abstractmethod
    def _content(self, text: str) -> Document:
        """A whole choice's text."""

    @abstractmethod
    def _logprobs(self, placed: Sequence[PlacedLogprob]) -> Document | None:
        """Log-probabilities in this answer's form; None when none were asked for."""


class CompletionForm(_Form):
    """``/v1/completions``."""

    chunk_object = whole_object = "text_completion"

    def __init__(
        self, exchange_id: str, model_id: str, texts: TokenTexts, *, with_logprobs: bool, as_ids: bool = False
    ) -> None:
        super().__init__(exchange_id, model_id, texts, with_logprobs=with_logprobs)
        self._name: Callable[[int], str] = (lambda token: f"token_id:{token}") if as_ids else texts.text

    def _delta(self, piece: Piece) -> str:
        return f'"text":{quote(piece.text)}'

    def _content(self, text: str) -> Document:
        return {"text": text}

    def _logprobs(self, placed: Sequence[PlacedLogprob]) -> Document | None:
        if not self._with_logprobs:
            return None
        return {
            "tokens": [self._name(each.logprob.token) for each in placed],
            "token_logprobs": [_finite(each.logprob.logprob) for each in placed],
            "top_logprobs": [self._top(each) for each in placed],
            "text_offset": [each.offset for each in placed],
        }

    def _top(self, placed: PlacedLogprob) -> dict[str, float | None] | None:
        """The alternatives and the token itself, best first; None for a first prompt token, which has none."""
        logprob = placed.logprob
        if logprob.logprob is None:
            return None
        top: dict[str, float | None] = {}
        for token, value in (*logprob.top, (logprob.token, logprob.logprob)):
            top.setdefault(self._name(token), _finite(value))
        return top


class ChatForm(_Form):
    """``/v1/chat/completions``. The first chunk of a choice carries the role beside its text."""

    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(self, exchange_id: str, model_id: str, texts: TokenTexts, *, with_logprobs: bool) -> None:
        super().__init__(exchange_id, model_id, texts, with_logprobs=with_logprobs)
        self._begun: set[int] = set()

    def _delta(self, piece: Piece) -> str:
        role = "" if piece.choice in self._begun else '"role":"assistant",'
        self._begun.add(piece.choice)
        return f'"delta":{{{role}"content":{quote(piece.text)}}}'

    def _content(self, text: str) -> Document:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _logprobs(self, placed: Sequence[PlacedLogprob]) -> Document | None:
        if not self._with_logprobs:
            return None
        content = []
        for each in placed:
            top = [self._entry(token, value) for token, value in each.logprob.top]
            content.append({**self._entry(each.logprob.token, each.logprob.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> Document:
        return {
            "token": self._texts.text(token),
            "logprob": _finite(logprob),
            "bytes": list(self._texts.bytes(token)),
        }


def _finite(logprob: float | None) -> float | None:
    return logprob if logprob is None or math.isfinite(logprob) else _LOWEST_LOGPROB
