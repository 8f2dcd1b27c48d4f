from __future__ import annotations

import random

import pytest

from mcp_core.documents import Document, Message, TextSet, require_disjoint, text_set
from mcp_core.errors import InputError


def words(seed: int, count: int = 400) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(count))


def of(name: str, *passages: str) -> TextSet:
    return text_set(name, [Document(str(index), text=each) for index, each in enumerate(passages)])


def test_different_texts_are_disjoint() -> None:
    require_disjoint(of("a", words(1), words(2)), of("b", words(3), words(4)))


def test_the_same_passage_is_refused_by_name() -> None:
    shared = words(1)
    with pytest.raises(
        InputError, match='1 of 2 passages of "judge" stand in the calibration text "watch"'
    ) as caught:
        require_disjoint(of("watch", words(2), shared), of("judge", words(3), shared))
    assert " ".join(shared.split()[:8]) in caught.value.message


@pytest.mark.parametrize("start", [0, 13, 77, 401])
def test_a_part_of_a_passage_is_found_wherever_it_begins(start: int) -> None:
    whole = words(1)
    part = whole[start : start + 300]  # over 150 letters, whatever the spaces
    with pytest.raises(InputError):
        require_disjoint(of("a", whole), of("b", words(2) + part + words(3)))


def test_a_common_phrase_is_no_overlap() -> None:
    phrase = "it is a truth universally acknowledged that a single man"
    require_disjoint(of("a", words(1) + phrase + words(2)), of("b", words(3) + phrase + words(4)))


def test_other_line_breaks_and_capitals_hide_nothing() -> None:
    shared = words(1)
    with pytest.raises(InputError):
        require_disjoint(of("a", shared), of("b", shared.upper().replace(" ", "\n")))


def test_short_passages_are_compared_whole() -> None:
    require_disjoint(of("a", "What is two and two?"), of("b", "What is two and three?"))
    with pytest.raises(InputError):
        require_disjoint(of("a", "What is two and two?"), of("b", "what is two and two"))


def test_chats_may_share_their_system_message_only() -> None:
    def chat(system: str, question: str) -> TextSet:
        return text_set("chat", [Document("1", messages=(Message("system", system), Message("user", question)))])

    require_disjoint(chat(words(1), words(2)), chat(words(1), words(3)))
    with pytest.raises(InputError):
        require_disjoint(chat(words(1), words(2)), chat(words(4), words(2)))
