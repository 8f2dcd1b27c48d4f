"""A request whose prompt's own tokens are scored, as completions' echo asks: one position after the other.

llama.cpp's server says what it would draw, and how likely that was before temperature and filters: it is made to
draw the prompt's own next token. This file does not know slots, queues or sockets (``llama_cpp_engine.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mcp_core.errors import McpError
from mcp_core.generation import GenerationRequest, TokenLogprob
from mcp_core.inference.llama_cpp_course import Course
from mcp_core.inference.llama_cpp_tokens import TokenBytes
from mcp_core.inference.mode import Outcome
from mcp_core.llama_cpp_scores import ALL, SMALLEST, listed

__all__ = ["Position", "ScoredCourse"]


@dataclass(frozen=True, slots=True)
class Position:
    """A question about the token at ``index`` of a prompt: how likely it and the ``top`` likeliest are after all
    before it. ``drawn`` is what llama.cpp is made to draw."""

    index: int
    top: int
    drawn: int


class ScoredCourse(Course):
    """``position`` is what is asked now, None once the whole prompt is scored; ``unasked`` until it is asked."""

    def __init__(self, request: GenerationRequest, eos_ids: frozenset[int], token_bytes: TokenBytes) -> None:
        super().__init__(request, eos_ids, token_bytes)
        self._scores = [TokenLogprob(request.prompt[0], None)]
        self._top = request.prompt_logprobs or 0
        self.unasked = False
        self.position = self._next_position()

    def asked_again(self) -> None:
        """As ``Course.asked_again``; a position that was ``unasked`` is asked now."""
        self.unasked = False
        super().asked_again()

    def read(self, document: dict[str, Any]) -> Iterator[Outcome]:
        """As ``Course.read``; the prompt's scores come with the first outcome. Raises McpError."""
        if self.position is not None:
            yield from self._read_position(self.position, document)
            return
        for outcome in super().read(document):
            scores, self._scores = tuple(self._scores), []
            yield replace(outcome, prompt_logprobs=scores or None)

    def _read_position(self, asked: Position, document: dict[str, Any]) -> Iterator[Outcome]:
        self.begun = True
        score = self._score(asked, document)
        if score is None:
            self.position, self.unasked = replace(asked, top=ALL), True
            return
        self._scores.append(score)
        self._computed += 1
        self.position = self._next_position()
        if self.position is not None:
            self.unasked = True
        elif self.request.max_tokens:
            self.unfinished = True
        else:
            self.ended = True
            yield Outcome(self.request, finish="length", prompt_logprobs=tuple(self._scores))

    def _score(self, asked: Position, document: dict[str, Any]) -> TokenLogprob | None:
        """None where the token is not among those that were listed."""
        found = listed(document)
        if not found:
            raise McpError("llama.cpp gave no log-probabilities.", "The worker's log says more.")
        token, known, best = self.request.prompt[asked.index], dict(found), found[:-1][: self._top]
        if token not in known:
            return None if asked.top < ALL else TokenLogprob(token, SMALLEST, best)
        return TokenLogprob(token, known[token], best)

    def _next_position(self) -> Position | None:
        index = len(self._scores)
        if index >= len(self.request.prompt):
            return None
        token = self.request.prompt[index]
        # Of a token that ends inside a character the server tells nothing; then another is drawn, and it is listed.
        drawn = self._bytes.whole_character if self._bytes.ends_inside(token) else token
        return Position(index, max(1, self._top), drawn)
