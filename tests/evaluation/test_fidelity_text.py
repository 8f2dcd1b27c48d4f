"""Which tokens are scored: the built-in set, what fits the context, what is decoded one token a step."""

from __future__ import annotations

from collections import Counter

import pytest

from mcp_core.documents import Document, require_disjoint
from mcp_core.errors import ContextTooLong, InputError
from mcp_core.evaluation.fidelity_text import (
    Passage,
    builtin_evaluation,
    decoded_passages,
    plain_passage,
    require_scored,
    within_context,
)
from mcp_core.texts import builtin_calibration


def passage(length, stratum="prose", scored_from=1):
    return Passage(Document(f"{stratum} {length}", text="x", stratum=stratum), tuple(range(length)), scored_from)


def test_the_builtin_set_has_six_strata_of_at_least_four_documents():
    documents = builtin_evaluation().documents
    strata = Counter(each.stratum for each in documents)
    assert set(strata) == {"prose", "code", "json", "maths", "languages", "long-context"}
    assert min(strata.values()) >= 4
    assert len({each.name for each in documents}) == len(documents) >= 24


def test_the_builtin_set_shares_nothing_with_the_calibration_text():
    require_disjoint(builtin_calibration(), builtin_evaluation())


def test_plain_text_is_scored_from_its_second_token_and_long_context_after_its_prefix():
    prose, long = (Document("d", text="x", stratum=each) for each in ("prose", "long-context"))
    assert plain_passage(prose, range(5)).scored == 4
    assert plain_passage(long, range(1500)).scored == 476
    assert plain_passage(long, range(1000)).scored == 0


def test_what_the_context_cannot_hold_is_left_out_and_said():
    kept, note = within_context([passage(10), passage(20), passage(30)], 20)
    assert [len(each.ids) for each in kept] == [10, 20]
    assert note == "1 document is longer than the context of 20 tokens and left out"
    assert within_context([passage(10)], 10)[1] == ""
    with pytest.raises(ContextTooLong, match="context of 5 tokens"):
        within_context([passage(10)], 5)


def test_too_little_to_score_is_refused():
    assert require_scored([passage(17), passage(1)], "mine.txt") == (passage(17),)
    with pytest.raises(InputError, match=r"mine\.txt has 15 tokens"):
        require_scored([passage(16)], "mine.txt")


def test_decoded_passages_are_of_every_stratum_and_enough():
    strata = ("prose", "code", "json", "maths", "languages", "long-context")
    chosen = decoded_passages([passage(n, stratum) for stratum in strata for n in (400, 600)], 128)
    assert [each.document.stratum for each in chosen] == list(strata)
    assert {(len(each.ids), each.scored_from) for each in chosen} == {(129 + 176, 129)}
    assert sum(each.scored for each in chosen) == 1056


def test_few_texts_are_decoded_further():
    chosen = decoded_passages([passage(1500, str(n)) for n in range(4)], 512)
    assert {(each.scored_from, each.scored) for each in chosen} == {(513, 256)}


def test_a_long_prompt_is_prefilled_whole():
    chosen = decoded_passages([passage(700, str(n), scored_from=300) for n in range(4)], 128)
    assert {each.scored_from for each in chosen} == {300}


@pytest.mark.parametrize("lengths", [(600, 600, 600), (150,) * 20])
def test_too_little_to_decode_is_refused(lengths):
    with pytest.raises(InputError, match="1,024 tokens of 4 texts"):
        decoded_passages([passage(length, str(n)) for n, length in enumerate(lengths)], 128)
