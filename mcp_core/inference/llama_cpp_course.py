"""Course: one request on its way through llama.cpp's server, from the server's documents to outcomes.

This file does not know slots, queues or sockets (``llama_cpp_engine.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mcp_core.errors import McpError
from mcp_core.generation import FinishReason, GenerationRequest, TokenLogprob
from mcp_core.inference.llama_cpp_tokens import TokenBytes
from mcp_core.inference.mode import Outcome

__all__ = ["Course"]


class Course:
    """What came of one request so far.

    ``untold`` counts tokens that the server has drawn and cannot tell any more; they have to be asked for in one
    answer (``llama_cpp_server.whole_body``). ``unfinished`` is set when such an answer has come and more is wanted.
    ``cached`` prompt tokens were the slot's already, ``computed`` of them were computed since it was last asked.
    """

    def __init__(self, request: GenerationRequest, eos_ids: frozenset[int], token_bytes: TokenBytes) -> None:
        self.request = request
        self.reply: list[int] = []
        self.begun = self.ended = self.unfinished = False
        self.untold = self.cached = 0
        self._eos_ids = frozenset() if request.ignore_eos else eos_ids
        self._bytes = token_bytes
        self._asked_at = self._processed = self._computed = 0

    def asked_again(self) -> None:
        """Another answer begins, behind the reply so far."""
        self._asked_at, self._processed = len(self.reply), 0
        self.untold, self.unfinished = 0, False

    def take_computed(self) -> int:
        """Prompt tokens computed since this was called last."""
        computed, self._computed = self._computed, 0
        return computed

    def read(self, document: dict[str, Any]) -> Iterator[Outcome]:
        """What one document says: progress of the prompt, a token, or the end."""
        if "prompt_progress" in document:
            self._note_progress(document["prompt_progress"])
        elif not document["stop"]:
            yield from self._read_token(document)
        elif document["tokens"]:
            yield from self._read_whole(document)
        else:
            yield from self._read_end(document)

    def failed(self, error: McpError) -> Outcome:
        """It ends here."""
        self.ended = True
        return Outcome(self.request, finish="error", error=error)

    def _note_progress(self, progress: dict[str, Any]) -> None:
        if not self.begun:
            self.begun, self.cached = True, int(progress["cache"])
        processed = int(progress["processed"])
        if self._asked_at:  # what it reads anew is not all prompt, and was counted
            return
        self._computed += max(0, processed - max(self._processed, int(progress["cache"])))
        self._processed = processed

    def _read_token(self, document: dict[str, Any]) -> Iterator[Outcome]:
        newest = int(document["tokens"][0])
        missing = self._drawn(document) - len(self.reply) - 1
        before = self._bytes.swallowed(document["content"], newest, missing) if missing > 0 else []
        if before is None:
            self.untold = missing + 1
            return
        for token in before:
            yield from self._next(token, None)
        listed = document.get("completion_probabilities") or [None]
        yield from self._next(newest, listed[0])

    def _read_whole(self, document: dict[str, Any]) -> Iterator[Outcome]:
        tokens = document["tokens"]
        listed = document.get("completion_probabilities") or []
        for place, token in enumerate(tokens):
            yield from self._next(int(token), listed[place] if len(listed) == len(tokens) else None)
        if document["stop_type"] == "eos":
            yield from self._end("stop")
        self.unfinished = not self.ended

    def _read_end(self, document: dict[str, Any]) -> Iterator[Outcome]:
        missing = self._drawn(document) - len(self.reply)
        if missing > 0:
            self.untold = missing
            return
        yield from self._end("stop" if document["stop_type"] == "eos" else "length")

    def _drawn(self, document: dict[str, Any]) -> int:
        return self._asked_at + int(document["tokens_predicted"])

    def _next(self, token: int, probabilities: dict[str, Any] | None) -> Iterator[Outcome]:
        if self.ended:
            return
        self.reply.append(token)
        finish: FinishReason | None = None
        if token in self._eos_ids:
            finish = "stop"
        elif len(self.reply) >= self.request.max_tokens:
            finish = "length"
        self.ended = finish is not None
        yield Outcome(self.request, token, finish, self._logprob(token, probabilities))

    def _end(self, finish: FinishReason) -> Iterator[Outcome]:
        """An end that no token of ours carried: llama.cpp ends replies at more tokens than the file names."""
        if not self.ended:
            self.ended = True
            yield Outcome(self.request, finish=finish)

    def _logprob(self, token: int, probabilities: dict[str, Any] | None) -> TokenLogprob | None:
        if self.request.logprobs is None:
            return None
        if probabilities is None:
            return TokenLogprob(token, None)
        best = tuple((int(each["id"]), float(each["logprob"])) for each in probabilities["top_logprobs"])
        return TokenLogprob(token, float(probabilities["logprob"]), best[: self.request.logprobs])
