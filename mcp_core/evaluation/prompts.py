"""Prompts of a Workload: the same (seed, repeat, index) always gives the same prompt and reply length.

A prompt is made when it is asked for, so a workload of a million requests needs no memory. This file does not
know about tokenizers (ids are drawn, not encoded) or about sending.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

from mcp_core.errors import WorkloadError
from mcp_core.workload import Lengths, Workload

__all__ = ["Prompt", "PromptAt", "text_prompts", "token_prompts"]

# Short common words: for most vocabularies one token each, so a text is about as long as was asked.
_COMMON_WORDS = """
    time year people way day man thing woman life child world school state family student group country problem
    hand part place case week company system program question work government number night point home water room
    mother area money story fact month lot right study book eye job word business issue side kind head house
    service friend father power hour game line end member law car city name team minute idea body back
"""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one request sends: token ids or text, and how many tokens it asks for."""

    index: int
    content: tuple[int, ...] | str
    output_tokens: int

    @property
    def sha256(self) -> str:
        """Hash of the content, which is stored instead of it."""
        text = self.content if isinstance(self.content, str) else json.dumps(self.content)
        return hashlib.sha256(text.encode()).hexdigest()


# index -> prompt; warm-up takes indexes from workload.requests on, so it shares no prompt with what is measured.
PromptAt = Callable[[int], Prompt]


def token_prompts(workload: Workload, vocab_size: int, special_ids: Collection[int]) -> PromptAt:
    """Prompts of token ids, uniform over the vocabulary without ``special_ids``. Lengths are exact."""
    special = frozenset(special_ids)
    ordinary = [token for token in range(vocab_size) if token not in special]
    if not ordinary:
        raise WorkloadError("The model's vocabulary has only special tokens.", "Choose another model.")

    def prompt(index: int) -> Prompt:
        draw, length, output = _drawn(workload, index)
        return Prompt(index, tuple(draw.choices(ordinary, k=length)), output)

    return prompt


def text_prompts(workload: Workload) -> PromptAt:
    """Prompts of words, for endpoints that take text: about one token a word; usage tells the true length."""
    words = _COMMON_WORDS.split()

    def prompt(index: int) -> Prompt:
        draw, length, output = _drawn(workload, index)
        return Prompt(index, " ".join(draw.choices(words, k=length)), output)

    return prompt


def _drawn(workload: Workload, index: int) -> tuple[random.Random, int, int]:
    """The generator of this request after its prompt and reply lengths were drawn from it."""
    draw = random.Random(f"{workload.seed}/{workload.repeat}/{index}")
    return draw, _length(draw, workload.prompt_tokens), _length(draw, workload.output_tokens)


def _length(draw: random.Random, lengths: Lengths) -> int:
    return draw.randint(lengths.min, lengths.max)
