from __future__ import annotations

import json
from typing import Any

import pytest

from mcp_core.generation import TokenLogprob
from mcp_core.serving.answer import ChatForm, CompletionForm
from mcp_core.serving.fake_engine import byte_tokenizer
from mcp_core.serving.reply import Piece, PlacedLogprob, Usage
from mcp_core.serving.text import TokenTexts

TEXTS = ('say "hi"\\', "line\nend\u2028\u0085\x00", "€ 👩\u200d🚀", "half \ud800", "", "</script>")


def forms(*, with_logprobs: bool = False) -> tuple[ChatForm, CompletionForm]:
    texts = TokenTexts(byte_tokenizer())
    return (
        ChatForm("chatcmpl-1", 'a "model"', texts, with_logprobs=with_logprobs),
        CompletionForm("cmpl-1", 'a "model"', texts, with_logprobs=with_logprobs),
    )


def piece(text: str, **changes: Any) -> Piece:
    given = {"choice": 0, "text": text, "token_ids": (7,), "logprobs": (), "finish": None, "usage": None} | changes
    return Piece(**given)


@pytest.mark.parametrize("text", TEXTS)
def test_a_chunk_is_ascii_json_that_says_the_text_exactly(text: str) -> None:
    chat, completion = (form.chunk(piece(text)) for form in forms())
    assert chat.isascii()
    assert "\n" not in chat + completion
    assert json.loads(chat)["choices"][0]["delta"] == {"role": "assistant", "content": text}
    assert json.loads(completion)["choices"][0]["text"] == text


def test_a_chunk_has_every_field_of_a_stream() -> None:
    _, form = forms()
    usage = Usage(3, 2, {"queue_ms": 0.5}, cached_tokens=1)
    document = json.loads(form.chunk(piece("x", choice=2, token_ids=(5, 6), finish="length", usage=usage)))
    assert document.pop("created") > 0
    assert document == {
        "id": "cmpl-1",
        "object": "text_completion",
        "model": 'a "model"',
        "choices": [{"index": 2, "text": "x", "logprobs": None, "finish_reason": "length", "token_ids": [5, 6]}],
        "usage": usage.as_dict(),
    }
    last = json.loads(form.usage_chunk(usage))
    assert (last["id"], last["choices"], last["usage"]) == ("cmpl-1", [], usage.as_dict())


def test_the_role_comes_once_a_choice_and_no_token_is_no_id() -> None:
    chat, _ = forms()
    deltas = [
        json.loads(chat.chunk(piece("a", choice=choice, token_ids=())))["choices"][0] for choice in (0, 1, 0, 1)
    ]
    assert [delta["delta"].get("role") for delta in deltas] == ["assistant", "assistant", None, None]
    assert deltas[0]["token_ids"] == []


def test_logprobs_are_in_a_chunk_when_asked_for() -> None:
    placed = (PlacedLogprob(TokenLogprob(65, float("-inf"), ((66, -0.5),)), 4),)
    chat, completion = (
        json.loads(form.chunk(piece("x", logprobs=placed)))["choices"][0]["logprobs"]
        for form in forms(with_logprobs=True)
    )
    assert [entry["logprob"] for entry in chat["content"]] == [-9999.0]
    assert completion["text_offset"] == [4]
