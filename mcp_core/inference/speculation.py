"""Speculation: guesses of a sequence's next tokens, which one forward pass then checks all at once.

A guess is kept where it is the token that would have been chosen anyway, so replies are the same with and without,
greedy or sampled from the same logits. Sources: speculative decoding (arXiv 2211.17192), prompt lookup
(github.com/apoorvumang/prompt-lookup-decoding). This file does not know how guesses are checked (``decoding.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from mcp_core.inference.kv_cache import extend
from mcp_core.recipe import Recipe

__all__ = ["DraftModel", "PromptLookup", "Proposer", "SpeculationCount", "build_proposer"]

# Shorter matches guess wrong more often than they save a pass.
_LONGEST_MATCH, _SHORTEST_MATCH = 3, 2


# Tokens guessed for one pass where the Recipe leaves it open: a look-up costs nothing, a draft a pass each.
_LOOKED_UP, _DRAFTED = 10, 5


@dataclass(slots=True)
class SpeculationCount:
    """Guessed tokens, and those that were right."""

    drafted: int = 0
    accepted: int = 0


class Proposer(Protocol):
    """Guesses what comes next, for one sequence at a time."""

    count: SpeculationCount

    def begin(self) -> None:
        """Another sequence."""

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to ``most`` tokens that may follow ``tokens``, the prompt and the reply so far."""


class PromptLookup:
    """What followed the newest earlier place where the last tokens stood: replies often copy from their prompt."""

    def __init__(self, length: int) -> None:
        self.count = SpeculationCount()
        self._length = length

    def begin(self) -> None:
        """Nothing is remembered between sequences."""

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """The longer match first, the newest first."""
        for size in range(_LONGEST_MATCH, _SHORTEST_MATCH - 1, -1):
            found = _newest_match(tokens, size)
            if found is not None:
                return list(tokens[found : found + min(self._length, most)])
        return []


class DraftModel:
    """A smaller model with the same tokenizer, decoding greedily with its own cache."""

    def __init__(self, model: Any, length: int) -> None:
        self.count = SpeculationCount()
        self._model = model
        self._length = length
        self._device: torch.device = next(model.parameters()).device
        self.begin()

    def begin(self) -> None:
        """An empty cache."""
        self._cache = DynamicCache(config=self._model.config)
        self._seen: list[int] = []

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Catch up with what was chosen since the last guess, then go on alone."""
        wanted = min(self._length, most)
        if wanted <= 0:
            return []
        self._forget_wrong(tokens)
        logits = self._read(list(tokens[len(self._seen) :]))
        guessed = [int(logits.argmax(-1))]
        while len(guessed) < wanted:
            guessed.append(int(self._read(guessed[-1:]).argmax(-1)))
        return guessed

    def _forget_wrong(self, tokens: Sequence[int]) -> None:
        """Drop what it guessed and was not chosen; at least the last token is read again."""
        same = 0
        for own, chosen in zip(self._seen, tokens[:-1], strict=False):
            if own != chosen:
                break
            same += 1
        if same < len(self._seen):
            self._cache.crop(same - len(self._seen))  # negative: that many fewer
            del self._seen[same:]

    def _read(self, tokens: list[int]) -> torch.Tensor:
        """Logits ``[vocab]`` after ``tokens``."""
        self._seen += tokens
        logits = extend(self._model, torch.tensor([tokens], device=self._device), self._cache, 1)
        return logits[0, -1]


def build_proposer(recipe: Recipe, draft: Any | None) -> Proposer | None:
    """What guesses for this Recipe; ``draft`` is its loaded draft model."""
    if recipe.speculation == "prompt-lookup":
        return PromptLookup(recipe.draft_tokens or _LOOKED_UP)
    if recipe.speculation == "draft":
        assert draft is not None
        return DraftModel(draft, recipe.draft_tokens or _DRAFTED)
    return None


def _newest_match(tokens: Sequence[int], size: int) -> int | None:
    """The position after the newest earlier occurrence of the last ``size`` tokens; None when there is none."""
    pattern = list(tokens[-size:])
    for start in range(len(tokens) - size - 1, -1, -1):
        if tokens[start] == pattern[0] and list(tokens[start : start + size]) == pattern:
            return start + size
    return None
