from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_llama import CHAT_TEMPLATE, byte_tokenizer
from tokenizers import processors

from mcp_core.documents import Document, Message, TextSet, text_set
from mcp_core.errors import RecipeError
from mcp_core.memory.passages import held_out, passages, random_passages
from mcp_core.models.text_codec import TextCodec
from mcp_core.recipe import Calibration


def codec(*, begins: bool = False) -> TextCodec:
    """A token a byte; with ``begins`` the tokenizer puts <|bos|> before a text."""
    tokenizer = byte_tokenizer().backend_tokenizer
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing("<|bos|> $A", special_tokens=[("<|bos|>", 256)])
    return TextCodec(tokenizer, CHAT_TEMPLATE, {}, frozenset({257}), frozenset({256, 257, 258}))


def letters(count: int) -> TextSet:
    return text_set("letters", [Document("1", text="".join(chr(97 + index % 26) for index in range(count)))])


def test_passages_are_spread_over_the_text() -> None:
    found = passages(letters(160), codec(), Calibration(samples=2, tokens=16))
    whole = codec().tokenizer.encode(letters(160).documents[0].text).ids
    assert [list(each) for each in found] == [whole[:16], whole[80:96]]


def test_each_passage_begins_as_a_prompt_does() -> None:
    found = passages(letters(160), codec(begins=True), Calibration(samples=3, tokens=16))
    assert [len(each) for each in found] == [16, 16, 16]
    assert [each.count(256) for each in found] == [1, 1, 1]
    assert [each[0] for each in found] == [256, 256, 256]


def test_a_text_that_is_too_short_says_how_many_passages_it_has() -> None:
    with pytest.raises(
        RecipeError, match='"letters" has 6 passages of 16 tokens for this model; 7 are asked'
    ) as caught:
        passages(letters(111), codec(), Calibration(samples=7, tokens=16))
    assert "at most 6" in caught.value.hint
    with pytest.raises(RecipeError, match="has 0 passages of 512 tokens"):
        passages(letters(111), codec(), Calibration(samples=1, tokens=512))


def test_chats_go_through_the_template() -> None:
    chats = text_set("chats", [Document("1", messages=(Message("user", "x" * 40),)), Document("2", text="plain")])
    (found,) = passages(chats, codec(), Calibration(samples=1, tokens=64))
    assert found[0] == 258  # <|im_start|>
    assert codec().tokenizer.decode(list(found), skip_special_tokens=True).startswith("user\nxxxx")


def test_random_passages_are_the_same_each_time() -> None:
    wanted = Calibration(samples=3, tokens=20)
    found = random_passages(50, wanted)
    assert found == random_passages(50, wanted)
    assert [len(each) for each in found] == [20, 20, 20]
    assert {index for each in found for index in each} <= set(range(50))


@pytest.mark.parametrize(("samples", "judged"), [(2, 1), (7, 1), (8, 2), (16, 4), (100, 4)])
def test_held_out_passages_are_not_among_the_rest(samples: int, judged: int) -> None:
    everything = [[index] for index in range(samples)]
    rest, held = held_out(everything)
    assert len(held) == judged
    assert sorted([*rest, *held]) == everything


def test_a_single_passage_is_both() -> None:
    assert held_out([[1]]) == ([[1]], [[1]])
