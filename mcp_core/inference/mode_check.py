"""ModeCheck: a few tokens of a fixed prompt, before a model serves and before another mode takes over.

This file does not know what a mode is made of, or who asks for another one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from mcp_core.errors import LoadFailed
from mcp_core.generation import GenerationRequest, Sampling, TokenLogprob
from mcp_core.inference.decoding import Decoder
from mcp_core.inference.kv_cache import CacheFactory
from mcp_core.inference.mode import Mode, Outcome
from mcp_core.inference.step_errors import as_error
from mcp_core.memory.attention import backend_in, backend_words
from mcp_core.models.loaded import LoadedModel

__all__ = ["ModeCheck"]

_TOKENS = 4
# In 16 bits, or with fp8 keys and values, near ties fall either way: then the plain decoder's first token has to be
# among a mode's likeliest, and both have to say much the same of the mode's own tokens: so many nats apart at most,
# on average (seen with SmolLM2-135M, continuous, on a CPU: 0.03 in bf16, 0.02 with an fp8 cache, 0.15 by LLM.int8).
_AMONG = 5
_MOST_NATS = 1.0


class ModeCheck:
    """Knows, once ``warm_up`` has run, which tokens the plain decoder gives."""

    def __init__(self, loaded: LoadedModel, decoder: Decoder, new_cache: CacheFactory) -> None:
        self._loaded = loaded
        self._decoder = decoder
        self._new_cache = new_cache
        self._expected: list[int] = []

    def warm_up(self) -> str | None:
        """Decode with the plain decoder; the attention kernel that was seen in it, if it was sdpa's.

        Raises LoadFailed when the model's log-probabilities are not finite, and McpError with the cause when it
        cannot compute.
        """
        try:
            running = self._decoder.steps(self._request(logprobs=0), self._new_cache(), lambda: False)
            first, prefill = backend_in(lambda: next(running), self._loaded.model)
            rest, decode = backend_in(lambda: list(running), self._loaded.model)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            raise as_error(error) from error
        steps = (first, *rest)
        self._require_finite([step.logprob.logprob for step in steps if step.logprob])
        self._expected = [step.token for step in steps if step.token is not None]
        return backend_words(prefill, decode)

    def of(self, mode: Mode) -> None:
        """The prompt through a mode; where all is fp32 it gives the plain decoder's tokens. Raises LoadFailed."""
        # Log-probabilities make a mode wait for each step: where tokens alone tell, it runs as it serves.
        request = self._request(logprobs=None if self._is_exact else _AMONG)
        mode.add(request)
        outcomes: list[Outcome] = []
        while any(held.id == request.id for held in mode.held()):
            outcomes += [each for each in mode.step().outcomes if each.token is not None]
            time.sleep(mode.wait_s)
        if len(outcomes) != _TOKENS or not self._agrees(outcomes):
            raise LoadFailed(
                f"Batching mode {mode.name} does not give this model's own tokens.", "Choose another batching mode."
            )

    @property
    def _is_exact(self) -> bool:
        effective = self._loaded.effective
        return effective.dtype == "fp32" and effective.kv_kind != "quantized-fp8"

    def _agrees(self, outcomes: Sequence[Outcome]) -> bool:
        if not self._expected:
            return True
        if self._is_exact:
            return [each.token for each in outcomes] == self._expected
        said = [each.logprob for each in outcomes if each.logprob is not None]
        if len(said) != len(outcomes) or self._expected[0] not in {token for token, _ in said[0].top}:
            return False
        off = (self._distance(*both) for both in zip(said, self._plain([each.token for each in said]), strict=True))
        return sum(off) / len(said) <= _MOST_NATS

    def _plain(self, tokens: Sequence[int]) -> tuple[TokenLogprob, ...]:
        """What the plain decoder says of these tokens after the prompt, each after those before it."""
        request = GenerationRequest("check", (*self.prompt(), *tokens), 0, prompt_logprobs=0)
        (step,) = self._decoder.steps(request, self._new_cache(), lambda: False)
        assert step.prompt_logprobs is not None
        return step.prompt_logprobs[-len(tokens) :]

    @staticmethod
    def _distance(one: TokenLogprob, other: TokenLogprob) -> float:
        assert one.logprob is not None
        assert other.logprob is not None
        return abs(one.logprob - other.logprob)

    def prompt(self, tokens: int = 16) -> tuple[int, ...]:
        """A fixed prompt of ordinary tokens that fits any context."""
        ordinary = [token for token in range(self._loaded.vocab_size) if token not in self._loaded.special_ids]
        length = min(tokens, self._loaded.max_context // 2)
        return tuple(ordinary[(7 * index + 5) % len(ordinary)] for index in range(length))

    def _request(self, logprobs: int | None = None) -> GenerationRequest:
        return GenerationRequest(
            "warm-up", self.prompt(), _TOKENS, Sampling(temperature=0), _TOKENS, ignore_eos=True, logprobs=logprobs
        )

    def _require_finite(self, logprobs: Sequence[float | None]) -> None:
        if not all(-1e30 < logprob <= 1e-3 for logprob in logprobs if logprob is not None):
            raise LoadFailed(
                f"The loaded model computes no usable probabilities in {self._loaded.effective.dtype}.",
                "Choose bf16 or fp32, or another quantization scheme.",
            )
