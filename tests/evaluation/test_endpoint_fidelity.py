"""The endpoint instrument against servers whose every probability is known."""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from mcp_core.documents import Document, Message, TextSet, text_set
from mcp_core.errors import InputError
from mcp_core.evaluation.endpoint_fidelity import common, compare, fidelity, not_measurable, passages, score_all
from mcp_core.evaluation.endpoints import Side
from mcp_core.evaluation.prompt_scores import Dialect, dialect_of
from mcp_core.recipe import Recipe
from mcp_core.results import Fidelity, Mean
from tests.evaluation.bigram_server import LETTERS, Bigrams, full_kl, running, table

P, Q = table(1), table(1) + 0
Q[:] = table(2) * 0.2 + table(1) * 0.8
Q -= np.log(np.exp(Q).sum(axis=1, keepdims=True))

TEXTS = {
    "prose": "the cat sat on the mat. it was warm there",
    "code": "for key in table: print key",
    "own": "aa bb cc",
}
TEXT = text_set("three", [Document(name, text=text, stratum=name) for name, text in TEXTS.items()])
REFERENCE = Side("reference", Recipe(), "http://reference")
CANDIDATE = Side("candidate", Recipe(engine="endpoint"), "http://candidate")


def judged(reference: Bigrams, candidate: Bigrams, text: TextSet = TEXT, floor: Mean | None = None) -> Fidelity:
    async def run() -> Fidelity:
        async with running(reference) as one, running(candidate) as other:
            dialect = common([await dialect_of(one), await dialect_of(other)])
            documents = passages(text)
            scored = [await score_all(each, dialect, documents) for each in (one, other)]
            return fidelity(CANDIDATE, REFERENCE, text, compare(documents, *scored), dialect, floor)

    return asyncio.run(run())


def test_a_server_against_itself_is_exact() -> None:
    same = judged(Bigrams(P), Bigrams(P), floor=Mean(mean=0.001))
    assert same.kl is not None
    assert (same.kl.mean, same.kl.max, same.kl_over_floor) == (0, 0, 0)
    assert same.top1 == Mean(mean=1, se=0)
    assert same.rms_dp == Mean(mean=0, se=0)
    assert same.perplexity == same.reference_perplexity


def test_every_figure_is_the_one_computed_by_hand_where_the_list_is_whole() -> None:
    found = judged(Bigrams(P, most=100), Bigrams(Q, most=100))
    # 20 of 57 letters: perplexity, top-1 and dp are exact; KL is of those 20, so bound it.
    pairs = [(LETTERS.index(a), LETTERS.index(b)) for text in TEXTS.values() for a, b in itertools.pairwise(text)]
    nll = -np.array([Q[pair] for pair in pairs])
    assert found.tokens == len(pairs)
    assert found.perplexity is not None
    assert found.perplexity.mean == pytest.approx(math.exp(nll.mean()))
    assert found.top1 is not None
    assert found.top1.mean == np.mean([P[a].argmax() == Q[a].argmax() for a, _ in pairs])
    assert found.rms_dp is not None
    dp = np.exp([Q[pair] for pair in pairs]) - np.exp([P[pair] for pair in pairs])
    assert found.rms_dp.mean == pytest.approx(math.sqrt(np.mean(dp**2)))
    full = np.mean([each for text in TEXTS.values() for each in full_kl(P, Q, text)])
    assert found.kl is not None
    assert 0.5 * full < found.kl.mean <= full
    assert found.truncation is not None
    assert found.truncation.top_k == 20
    assert 0 < found.truncation.tail_mass < 0.2
    assert {row.name for row in found.strata} == set(TEXTS)
    assert found.strata[0].kl is not None
    assert found.strata[0].kl.mean == max(row.kl.mean for row in found.strata if row.kl)


def test_fewer_alternatives_leave_more_out_and_bound_less() -> None:
    twenty, five = judged(Bigrams(P), Bigrams(Q)), judged(Bigrams(P), Bigrams(Q, most=5))
    assert twenty.kl is not None
    assert five.kl is not None
    assert five.kl.mean < twenty.kl.mean
    assert (twenty.perplexity, twenty.rms_dp) == (five.perplexity, five.rms_dp)
    assert five.truncation is not None
    assert "told apart by their text" in " ".join(five.notes)


def test_another_tokenizer_is_refused_by_name() -> None:
    swapped = LETTERS.replace("the", "").swapcase()
    with pytest.raises(InputError, match=r"different tokenizers.*first at token"):
        judged(Bigrams(P), Bigrams(P, letters=swapped))


def test_chats_are_left_out_and_said() -> None:
    chat = Document("chat", messages=(Message("user", "hello"),))
    mixed = text_set("mixed", [*TEXT.documents, chat])
    assert "1 of 4 documents left out: chats" in " ".join(judged(Bigrams(P), Bigrams(P), mixed).notes)
    with pytest.raises(InputError, match="has chats only"):
        passages(text_set("chats", [chat]))


def test_a_document_longer_than_the_context_is_left_out() -> None:
    async def run() -> Fidelity:
        async with running(Bigrams(P)) as one, running(Bigrams(P, context=30)) as other:
            dialect = Dialect(20, 0, as_ids=True)
            scored = [await score_all(each, dialect, TEXT.documents) for each in (one, other)]
            return fidelity(CANDIDATE, REFERENCE, TEXT, compare(TEXT.documents, *scored), dialect)

    assert asyncio.run(run()).documents == 2


def test_common_ground_of_two_servers() -> None:
    ours, plain = Dialect(20, 0, as_ids=True), Dialect(5, 1, as_ids=False)
    assert common([]) == common([ours]) == ours
    assert common([ours, plain]) == plain


def test_a_server_that_cannot_be_measured_is_an_answer_of_the_same_key() -> None:
    refused = not_measurable(CANDIDATE, REFERENCE, TEXT, "echo is not supported")
    assert (refused.status, refused.reason) == ("not-measurable", "echo is not supported")
    assert refused.kl is None
    assert refused.key == judged(Bigrams(P), Bigrams(P)).key
    assert not_measurable(replace(CANDIDATE, url="http://other"), REFERENCE, TEXT, "").key != refused.key
