from __future__ import annotations

import asyncio
import itertools
import math
from typing import Any

import numpy as np
import pytest

from mcp_core.errors import Unscorable
from mcp_core.evaluation.prompt_scores import Dialect, PromptScores, dialect_of, score
from tests.evaluation.bigram_server import LETTERS, Bigrams, running, table

TEXT = "the quick fox"
P = table(1)


def asked(server: Bigrams, text: str = TEXT) -> tuple[Dialect, PromptScores]:
    async def run() -> Any:
        async with running(server) as endpoint:
            dialect = await dialect_of(endpoint)
            return dialect, await score(endpoint, dialect, text)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("server", "dialect"),
    [
        (Bigrams(P), Dialect(20, 0, as_ids=True)),
        (Bigrams(P, counts_one=True), Dialect(20, 0, as_ids=True)),
        (Bigrams(P, refuses=("return_tokens_as_token_ids",)), Dialect(20, 0, as_ids=False)),
        (Bigrams(P, refuses=("return_tokens_as_token_ids",), most=5), Dialect(5, 1, as_ids=False)),
    ],
)
def test_each_server_is_asked_in_its_own_way_and_says_the_same(server: Bigrams, dialect: Dialect) -> None:
    found, scores = asked(server)
    assert found == dialect
    expected = [P[LETTERS.index(a), LETTERS.index(b)] for a, b in itertools.pairwise(TEXT)]
    assert scores.logprobs[0] is None
    assert scores.logprobs[1:] == tuple(pytest.approx(each) for each in expected)
    assert len(scores.tokens) == len(scores.top) == len(TEXT)
    assert scores.offsets == tuple(range(len(TEXT)))
    best = max(scores.top[1], key=lambda name: scores.top[1][name])
    likeliest = int(np.argmax(P[LETTERS.index("t")]))
    assert best == (f"token_id:{likeliest}" if found.as_ids else LETTERS[likeliest])
    assert all(scores.tokens[at] in scores.top[at] for at in range(1, len(TEXT)))


def test_a_server_that_scores_only_what_it_generates_cannot_be_measured() -> None:
    with pytest.raises(Unscorable, match="gives no log-probabilities of a prompt: it answered without"):
        asked(Bigrams(P, echoes=False))


def test_a_server_that_refuses_echo_is_quoted() -> None:
    with pytest.raises(Unscorable, match="echo is not supported"):
        asked(Bigrams(P, refuses=("echo",)))


def test_what_is_no_distribution_is_not_taken_for_one() -> None:
    with pytest.raises(Unscorable, match="not those of a distribution"):
        asked(Bigrams(P + math.log(2.5)))
