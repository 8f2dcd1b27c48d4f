from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import numpy as np
import pytest

from mcp_core.errors import InputError, Unscorable
from mcp_core.evaluation.task_check import TaskItem, answers, builtin_items, compare, read_items
from tests.evaluation.bigram_server import LETTERS, Bigrams, running, table

ITEMS = tuple(
    TaskItem(context=f"Is it {word}?", choices=("aaa", "bcd", "efg", "hij"), answer=index % 4)
    for index, word in enumerate(("red", "big", "old", "wet", "new", "far", "hot", "raw"))
)


def answered(server: Bigrams, items: tuple[TaskItem, ...] = ITEMS) -> tuple[int, ...]:
    async def run() -> Any:
        async with running(server) as endpoint:
            return await answers(endpoint, items)

    return asyncio.run(run())


def likelihood(logprobs: np.ndarray, context: str, choice: str) -> float:
    """By hand: every letter of the space and the choice, given the letter before it."""
    text = context[-1] + " " + choice
    return sum(logprobs[LETTERS.index(a), LETTERS.index(b)] for a, b in itertools.pairwise(text))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_answer_is_the_choice_with_the_largest_likelihood(seed: int) -> None:
    logprobs = table(seed)
    by_hand = tuple(
        int(np.argmax([likelihood(logprobs, item.context, choice) for choice in item.choices])) for item in ITEMS
    )
    assert answered(Bigrams(logprobs)) == by_hand


def test_a_planted_answer_is_found() -> None:
    assert set(answered(Bigrams(_likely(" efg")))) == {2}


def _likely(path: str) -> np.ndarray:
    logits = np.zeros((len(LETTERS), len(LETTERS)))
    for before, after in itertools.pairwise(path):
        logits[LETTERS.index(before), LETTERS.index(after)] = 8
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_flips_are_counted_both_ways() -> None:
    right = [item.answer for item in ITEMS]
    worse = [(answer + 1) % 4 if index < 3 else answer for index, answer in enumerate(right)]
    reference = [right[0], (right[1] + 2) % 4, *right[2:]]  # the second is wrong in both
    check = compare("eight", ITEMS, ("native", reference), ("nf4", worse))
    assert (check.lost, check.won) == (2, 0)
    assert (check.reference_accuracy, check.candidate_accuracy) == (7 / 8, 5 / 8)
    assert check.difference.value == pytest.approx(-0.25)
    assert (check.p, check.chance) == (0.5, 0.25)
    assert [each.flip for each in check.items][:4] == ["lost", None, "lost", None]
    back = compare("eight", ITEMS, ("nf4", worse), ("native", reference))
    assert (back.lost, back.won) == (0, 2)


def test_the_same_answers_never_flip() -> None:
    answers_ = [0] * len(ITEMS)
    check = compare("same", ITEMS, ("a", answers_), ("b", answers_))
    assert (check.lost, check.won, check.p, check.difference.low, check.difference.high) == (0, 0, 1, 0, 0)


def test_a_server_that_does_not_say_where_tokens_stand_is_told() -> None:
    with pytest.raises(Unscorable, match="where a token stands"):
        answered(Bigrams(table(1), offsets=False))


def test_the_built_in_items_are_sixty_with_their_answers_spread() -> None:
    items = builtin_items()
    assert len(items) == len({item.context for item in items}) == 60
    assert all(len(set(item.choices)) == 4 for item in items)
    assert min(np.bincount([item.answer for item in items])) >= 8


def test_answers_may_be_texts_and_contexts_stand_alone() -> None:
    choices = {"choices": ["x", "y"]}
    rows = [choices | {"question": "Q?", "answer": "y"}, choices | {"context": "C", "answer": 0}]
    first, second = read_items("own.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert (first.context, first.answer) == ("Question: Q?\nAnswer:", 1)
    assert (second.context, second.answer) == ("C", 0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no items"),
        (b"\xff\xfe", "not UTF-8"),
        (b"{", "line 1, is not JSON"),
        (b'{"answer": ' + b"1" * 5000 + b"}", "line 1, cannot be read: .*5000 digits"),
        (b"[" * 100_000, "line 1, cannot be read: maximum recursion"),
        (b"[1]", "line 1:"),
        (b'{"question": "Q", "choices": ["x"], "answer": 0}', "choices"),
        (b'{"question": "Q", "choices": ["x", "y"], "answer": 2}', "no choice 2"),
        (b'{"question": "Q", "choices": ["x", "y"], "answer": "z"}', "answer"),
        (b'{"choices": ["x", "y"], "answer": 0}', "context"),
    ],
)
def test_bad_items_name_their_line(content: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_items("own.jsonl", content)
