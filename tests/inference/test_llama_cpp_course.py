from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("xllamacpp")

from mcp_core.generation import GenerationRequest
from mcp_core.inference.llama_cpp_course import Course
from mcp_core.inference.llama_cpp_tokens import TokenBytes
from mcp_core.serving.fake_engine import EOS, byte_tokenizer

BYTES = TokenBytes(byte_tokenizer())


def course(max_tokens: int = 10, **fields: Any) -> Course:
    return Course(GenerationRequest("a", (1, 2), max_tokens, **fields), frozenset({EOS}), BYTES)


def token(text: str, newest: int, drawn: int) -> dict[str, Any]:
    return {"content": text, "tokens": [newest], "tokens_predicted": drawn, "stop": False}


def end(drawn: int, stop_type: str = "limit", tokens: tuple[int, ...] = ()) -> dict[str, Any]:
    return {"content": "", "tokens": [*tokens], "tokens_predicted": drawn, "stop": True, "stop_type": stop_type}


def ids(text: str) -> list[int]:
    return byte_tokenizer().encode(text).ids


def read(of: Course, *documents: dict[str, Any]) -> list[tuple[int | None, str | None]]:
    return [(each.token, each.finish) for document in documents for each in of.read(document)]


@pytest.mark.parametrize("text", ["é", "日", "🎉"])
def test_swallowed_ids_follow_from_the_characters_bytes(text: str) -> None:
    *before, newest = ids(text)
    assert BYTES.swallowed(text, newest, len(before)) == before
    assert read(course(), token(text, newest, len(before) + 1)) == [(each, None) for each in (*before, newest)]


def test_bytes_that_make_no_character_are_asked_for_again() -> None:
    one = course()
    assert read(one, token("a", ids("a")[0], 1), token("\ufffdbcd", ids("d")[0], 5)) == [(ids("a")[0], None)]
    assert one.untold == 4
    one.asked_again()
    lost = (ids("🎉")[0], *ids("bcd"))
    assert read(one, end(4, tokens=lost)) == [(each, None) for each in lost]
    assert one.unfinished
    one.asked_again()
    assert read(one, token("e", ids("e")[0], 1)) == [(ids("e")[0], None)]
    assert one.reply == [ids("a")[0], *lost, ids("e")[0]]


def test_a_reply_that_ends_inside_a_character_is_completed() -> None:
    one = course(max_tokens=2)
    read(one, token("a", ids("a")[0], 1))
    assert read(one, end(2)) == []
    assert one.untold == 1
    one.asked_again()
    assert read(one, end(1, tokens=(ids("é")[0],))) == [(ids("é")[0], "length")]
    assert not one.unfinished


def test_the_eos_token_ends_it_unless_ignored_and_nothing_comes_after() -> None:
    assert read(course(), token("", EOS, 1), end(1, "eos")) == [(EOS, "stop")]
    assert read(course(ignore_eos=True), token("", EOS, 1)) == [(EOS, None)]
    assert read(course(), token("a", ids("a")[0], 1), end(1, "eos")) == [(ids("a")[0], None), (None, "stop")]


def test_progress_counts_what_was_computed_and_what_was_cached() -> None:
    one = course()
    for processed in (5, 7, 12):
        read(
            one,
            {"prompt_progress": {"total": 12, "cache": 5, "processed": processed}, "tokens": [0], "stop": False},
        )
    assert (one.begun, one.cached, one.take_computed(), one.take_computed()) == (True, 5, 7, 0)


def test_a_prompt_that_is_asked_for_again_is_counted_once() -> None:
    one = course()
    progress = {"prompt_progress": {"total": 2, "cache": 0, "processed": 2}, "tokens": [0], "stop": False}
    read(one, progress, token("a", ids("a")[0], 1), token("\ufffdb", ids("b")[0], 3))
    one.asked_again()
    read(one, end(2, tokens=tuple(ids("cb"))))
    one.asked_again()
    read(one, {**progress, "prompt_progress": {"total": 5, "cache": 4, "processed": 5}})
    assert one.take_computed() == 2
