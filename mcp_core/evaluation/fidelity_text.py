"""What is scored: the built-in evaluation set, documents as token ids, and which positions of them count.

This file does not know models; a tokenizer and a chat template are handed in as functions.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import zip_longest

from mcp_core.documents import Document, TextSet, text_set
from mcp_core.errors import ContextTooLong, InputError

__all__ = [
    "LONG_CONTEXT",
    "LONG_PREFIX_TOKENS",
    "Passage",
    "builtin_evaluation",
    "decoded_passages",
    "plain_passage",
    "require_scored",
    "within_context",
]

STRATA = ("prose", "code", "json", "maths", "languages", "long-context")
LONG_CONTEXT = "long-context"
# Documents of that stratum are scored after this many tokens.
LONG_PREFIX_TOKENS = 1024
# CONTRACTS.md: KV kinds are judged on at least so many positions of at least so many texts.
DECODED_TOKENS = 1024
DECODED_TEXTS = 4
# One text's share of them; six strata come to DECODED_TOKENS.
_DECODED_SHARE = 176
# Fewer scored positions than this say nothing.
_FEWEST_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Passage:
    """One document as ids. Those from ``scored_from`` on are scored, each predicted from all before it."""

    document: Document
    ids: tuple[int, ...]
    scored_from: int = 1
    is_reply: bool = False

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return max(0, len(self.ids) - self.scored_from)


@cache
def builtin_evaluation() -> TextSet:
    """25 documents in six strata (data/evaluation/README.md)."""
    folder = files("mcp_core") / "data" / "evaluation"
    documents: list[Document] = []
    for stratum in STRATA:
        lines = (folder / f"{stratum}.jsonl").read_text(encoding="utf-8").splitlines()
        documents += [Document(**json.loads(line)) for line in lines]
    return text_set("built-in evaluation set", documents)


def plain_passage(document: Document, ids: Sequence[int]) -> Passage:
    """A document of plain text: everything but its first token is scored, or what lies beyond the long prefix."""
    first = LONG_PREFIX_TOKENS if document.stratum == LONG_CONTEXT else 1
    return Passage(document, tuple(ids), first)


def within_context(passages: Sequence[Passage], max_context: int) -> tuple[tuple[Passage, ...], str]:
    """Those that the context holds, and a note on those that it does not. Raises ContextTooLong when none fits."""
    kept = tuple(each for each in passages if len(each.ids) <= max_context)
    left_out = len(passages) - len(kept)
    if not kept:
        raise ContextTooLong(
            f"Every document is longer than the context of {max_context:,} tokens.",
            "Raise kv.max_context in the Recipe, or give shorter documents.",
        )
    if not left_out:
        return kept, ""
    what = "1 document is" if left_out == 1 else f"{left_out} documents are"
    return kept, f"{what} longer than the context of {max_context:,} tokens and left out"


def require_scored(passages: Sequence[Passage], name: str) -> tuple[Passage, ...]:
    """Those with anything to score. Raises InputError when they are too few tokens in all."""
    kept = tuple(each for each in passages if each.scored > 0)
    scored = sum(each.scored for each in kept)
    if scored < _FEWEST_TOKENS:
        raise InputError(
            f"{name} has {scored} tokens to score; at least {_FEWEST_TOKENS} are needed.",
            "Give a longer text: twenty documents of a few hundred tokens each are a measurement.",
        )
    return kept


def decoded_passages(passages: Sequence[Passage], prefill: int) -> tuple[Passage, ...]:
    """Passages to decode one token a step after ``prefill`` tokens: cut, and of as many strata as there are.

    Raises InputError when they are fewer than 1,024 positions of 4 texts.
    """
    long_enough = [each for each in passages if len(each.ids) > _first(each, prefill) + _FEWEST_TOKENS]
    share = max(_DECODED_SHARE, -(-DECODED_TOKENS // max(1, len(long_enough))))
    chosen: list[Passage] = []
    for passage in _longest_of_each_stratum(long_enough):
        if len(chosen) >= DECODED_TEXTS and sum(each.scored for each in chosen) >= DECODED_TOKENS:
            break
        first = _first(passage, prefill)
        chosen.append(Passage(passage.document, passage.ids[: first + share], first, passage.is_reply))
    scored = sum(each.scored for each in chosen)
    if len(chosen) < DECODED_TEXTS or scored < DECODED_TOKENS:
        raise InputError(
            f"A KV kind is judged on {DECODED_TOKENS:,} tokens of {DECODED_TEXTS} texts, each after {prefill:,} "
            f"tokens; this text has {scored:,} of {len(chosen)}.",
            "Give more or longer documents, or leave --text out for the built-in set.",
        )
    return tuple(chosen)


def _first(passage: Passage, prefill: int) -> int:
    """The first token that is predicted by a decode step: the prefill's own prediction is no such step."""
    return max(prefill + 1, passage.scored_from)


def _longest_of_each_stratum(passages: Sequence[Passage]) -> Iterator[Passage]:
    """The longest of every stratum, then the second longest of every stratum, and so on."""
    by_stratum: dict[str, list[Passage]] = defaultdict(list)
    for passage in sorted(passages, key=lambda each: len(each.ids), reverse=True):
        by_stratum[passage.document.stratum].append(passage)
    for row in zip_longest(*by_stratum.values()):
        yield from (passage for passage in row if passage is not None)
