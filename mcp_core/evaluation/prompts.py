"""Prompts of a Workload: the same (seed, repeat, index) always gives the same prompt and reply length.

A prompt is made when it is asked for, so a workload of a million requests needs no memory. This file does not
know about tokenizers (ids are drawn, not encoded) or about sending.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Protocol

from mcp_core import recordings, texts
from mcp_core.documents import Document, Message
from mcp_core.errors import InputError, WorkloadError
from mcp_core.workload import Workload

__all__ = ["Content", "Prompt", "PromptAt", "Prompts", "Vocabulary", "prompts_of", "text_prompts", "token_prompts"]

# Short common words: for most vocabularies one token each, so a text is about as long as was asked.
_COMMON_WORDS = """
    time year people way day man thing woman life child world school state family student group country problem
    hand part place case week company system program question work government number night point home water room
    mother area money story fact month lot right study book eye job word business issue side kind head house
    service friend father power hour game line end member law car city name team minute idea body back
"""
# Of the built-in book: data/README.md. A length is a wish where text is sent; usage tells the true one.
_TOKENS_PER_WORD = 1.25

Content = tuple[int, ...] | str | tuple[Message, ...]
_Piece = tuple[int, ...] | str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one request sends: token ids, text or a chat's messages, and how many tokens it asks for.

    ``shared_tokens`` is how many of its first tokens other requests may have sent before, by the workload's plan.
    """

    index: int
    content: Content
    output_tokens: int
    shared_tokens: int = 0

    @property
    def sha256(self) -> str:
        """Hash of the content, which is stored instead of it."""
        if isinstance(self.content, str):
            return hashlib.sha256(self.content.encode()).hexdigest()
        said = [[each.role, each.content] if isinstance(each, Message) else each for each in self.content]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


# index -> prompt; warm-up takes indexes of its own, so it shares no prompt with what is measured.
PromptAt = Callable[[int], Prompt]


class Prompts(Protocol):
    """Every prompt of a workload. ``count`` is how many there are, None without an end; ``note`` is why figures may
    not be compared, empty where they may."""

    count: int | None
    note: str

    def __call__(self, index: int) -> Prompt:
        """The prompt of one request, or of a chat's first turn."""

    def follow_up(self, index: int, before: Prompt, reply_ids: tuple[int, ...], reply: str) -> Prompt:
        """The prompt of a later turn: all that was said, and something new."""


class Vocabulary(NamedTuple):
    """A model's token ids: from 0 to below ``size``."""

    size: int
    special_ids: Collection[int] = ()


def prompts_of(workload: Workload, vocabulary: Vocabulary | None = None) -> Prompts:
    """As the workload says: of token ids where the vocabulary is known and lengths are to be exact, else of text.

    Raises InputError when a text or recording is not kept here, WorkloadError for one without a user's message.
    """
    source = workload.prompts
    if source.kind == "file":
        return _FilePrompts(workload)
    if vocabulary is None or source.kind == "sample" or source.as_chat:
        return text_prompts(workload)
    return token_prompts(workload, *vocabulary)


def token_prompts(workload: Workload, vocab_size: int, special_ids: Collection[int]) -> Prompts:
    """Prompts of token ids, uniform over the vocabulary without ``special_ids``. Lengths are exact."""
    special = frozenset(special_ids)
    ordinary = [token for token in range(vocab_size) if token not in special]
    if not ordinary:
        raise WorkloadError("The model's vocabulary has only special tokens.", "Choose another model.")
    return _DrawnPrompts(workload, lambda draw, length: tuple(draw.choices(ordinary, k=length)))


def text_prompts(workload: Workload) -> Prompts:
    """Prompts of words or of the built-in book: about so many tokens; usage tells the true length."""
    if workload.prompts.kind == "sample":
        return _DrawnPrompts(workload, _passage)
    words = _COMMON_WORDS.split()
    return _DrawnPrompts(workload, lambda draw, length: " ".join(draw.choices(words, k=length)))


class _DrawnPrompts:
    """Prompts that are made up: ``make`` gives a piece of so many tokens from a generator."""

    note = ""

    def __init__(self, workload: Workload, make: Callable[[random.Random, int], _Piece]) -> None:
        self._workload = workload
        self._make = make
        source = workload.prompts
        assert source.sha256 is not None or source.kind != "recording"
        self._recorded = (
            recordings.get(source.sha256).requests if source.kind == "recording" and source.sha256 else ()
        )
        self.count = len(self._recorded) if workload.arrivals.kind == "replay" else None
        self._shared: dict[int, _Piece] = {}

    def __call__(self, index: int) -> Prompt:
        own, output = self._own(index)
        if self._workload.prefix is None:
            return Prompt(index, self._content(own), output)
        prefix, shared_tokens = self._prefix(index)
        return Prompt(index, self._content(_joined(prefix, own)), output, shared_tokens)

    def follow_up(self, index: int, before: Prompt, reply_ids: tuple[int, ...], reply: str) -> Prompt:
        own, output = self._own(index)
        return Prompt(index, _continued(before.content, reply_ids, reply, own), output)

    def _own(self, index: int) -> tuple[_Piece, int]:
        """What this request alone says, and the length of its reply."""
        draw = self._generator(str(index))
        if self._recorded:
            row = self._recorded[index % len(self._recorded)]
            prompt, output = row.prompt_tokens, row.output_tokens
        else:
            prompt, output = self._workload.prompt_tokens.draw(draw), self._workload.output_tokens.draw(draw)
        return self._make(draw, prompt), output

    def _prefix(self, index: int) -> tuple[_Piece, int]:
        """What it begins with, and how much of that others begin with, too."""
        plan, draw = self._workload.prefix, self._generator(f"prefix/{index}")
        assert plan is not None
        if draw.random() >= plan.hit_rate:
            return self._make(draw, plan.tokens), 0
        group = draw.randrange(plan.groups)
        if group not in self._shared:
            self._shared[group] = self._make(self._generator(f"prefix-group/{group}"), plan.tokens)
        return self._shared[group], plan.tokens

    def _content(self, piece: _Piece) -> Content:
        if self._workload.prompts.as_chat and isinstance(piece, str):
            return (Message("user", piece),)
        return piece

    def _generator(self, purpose: str) -> random.Random:
        return random.Random(f"{self._workload.seed}/{self._workload.repeat}/{purpose}")


class _FilePrompts:
    """The user's own prompts in an order drawn from the seed; every repeat goes on where the last one ended."""

    count: int | None = None

    def __init__(self, workload: Workload) -> None:
        assert workload.prompts.sha256 is not None
        kept = texts.get(workload.prompts.sha256)
        self._documents = [_asked(each) for each in kept.documents]
        random.Random(workload.seed).shuffle(self._documents)
        self._workload = workload
        self._sent = workload.requests + workload.warmup_requests
        # Where time alone ends it, the records tell how many there were (``comparability.py``).
        few = workload.duration_s is None and len(self._documents) < self._sent
        self.note = (
            f'"{kept.name}" has {len(self._documents)} prompts: some were sent more than once' if few else ""
        )

    def __call__(self, index: int) -> Prompt:
        position = (self._workload.repeat * self._sent + index) % len(self._documents)
        output = self._workload.output_tokens.draw(
            random.Random(f"{self._workload.seed}/{self._workload.repeat}/{index}")
        )
        return Prompt(index, self._documents[position], output)

    def follow_up(self, index: int, before: Prompt, reply_ids: tuple[int, ...], reply: str) -> Prompt:
        return replace(before, index=index)  # never asked: Workload allows no chats with a file


def _asked(document: Document) -> Content:
    """What is sent of a document: its text, or its messages up to the last that a user wrote."""
    if document.text is not None:
        return document.text
    last = max((at for at, each in enumerate(document.messages) if each.role == "user"), default=None)
    if last is None:
        raise InputError(f"{document.name} of the text has no message of a user.", "Prompts end with one.")
    return document.messages[: last + 1]


def _joined(first: _Piece, second: _Piece) -> _Piece:
    if isinstance(first, str) or isinstance(second, str):
        return f"{first}\n\n{second}"
    return first + second


def _continued(before: Content, reply_ids: tuple[int, ...], reply: str, own: _Piece) -> Content:
    if isinstance(before, str):
        return f"{before}{reply}\n\n{own}"
    if before and isinstance(before[0], Message):
        return (*before, Message("assistant", reply), Message("user", str(own)))
    assert not isinstance(own, str)
    return (*before, *reply_ids, *own)


@lru_cache(maxsize=1)
def _book() -> tuple[str, ...]:
    return tuple(word for each in texts.builtin_calibration().documents for word in (each.text or "").split())


def _passage(draw: random.Random, length: int) -> str:
    """So many tokens' worth of the book from any word on, round its end where it is too short."""
    words, wanted = _book(), max(1, round(length / _TOKENS_PER_WORD))
    start = draw.randrange(len(words))
    return " ".join(words[(start + step) % len(words)] for step in range(wanted))
