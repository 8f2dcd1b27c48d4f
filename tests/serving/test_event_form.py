"""Events read by their form are what a JSON parser reads, whatever is changed in them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mcp_core.serving import event_form
from mcp_core.serving.chunk import Chunk, read_chunk
from mcp_core.serving.event_form import ChunkReader

HEAD = {"id": "cmpl-1", "created": 1769400000, "model": 'a "text": "odd" model'}


def worker(text: str, number: int) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None, "token_ids": [number]}
    return json.dumps({**HEAD, "choices": [choice]}, separators=(",", ":")).encode()


def vllm_chat(text: str, number: int) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None, "token_ids": None}
    return json.dumps({**HEAD, "choices": [choice], "usage": None}, ensure_ascii=False).encode()


def reasoning(text: str, number: int) -> bytes:
    choice = {"delta": {"content": None, "reasoning_content": text}, "index": 0, "token_ids": [number]}
    return json.dumps({"choices": [choice], **HEAD}).encode()


FORMS = pytest.mark.parametrize("form", [worker, vllm_chat, reasoning])
TEXTS = ("", " a", "\n", 'say "x"', "back\\slash", "é", "日本", "😀", "\x7f", "data: [DONE]", "12", "}]}")


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every payload that needed a JSON parser."""
    seen: list[bytes] = []

    def counted(received_s: float, payload: bytes) -> Chunk:
        seen.append(payload)
        return read_chunk(received_s, payload)

    monkeypatch.setattr(event_form, "read_chunk", counted)
    return seen


@FORMS
def test_texts_and_ids_of_any_kind_are_read_the_same_without_a_parser(form: Any, parsed: list[bytes]) -> None:
    reader = ChunkReader()
    reader.read(0.0, form(" first", 7))
    parsed.clear()
    for number, text in enumerate(TEXTS):
        assert reader.read(number, form(text, number)) == read_chunk(number, form(text, number))
    assert parsed == []


@FORMS
def test_a_byte_that_is_changed_or_lost_anywhere_is_read_as_the_parser_reads_it(form: Any) -> None:
    whole, reader = form(" a\tb", 120), ChunkReader()
    reader.read(0.0, form(" first", 7))
    for at in range(len(whole)):
        for byte in (b"", b'"', b"\\", b"0", b"9", b",", b"}", b"]", b"\xff", b"\x00", b"-", b" "):
            changed = whole[:at] + byte + whole[at + 1 :]
            assert reader.read(1.0, changed) == read_chunk(1.0, changed)


def test_a_number_too_long_for_an_id_is_no_reason_to_fail() -> None:
    """Python reads none of so many digits."""
    reader, long = ChunkReader(), worker("a", 1).replace(b"[1]", b"[" + b"9" * 5000 + b"]")
    reader.read(0.0, worker("a", 1))
    assert reader.read(1.0, long) == read_chunk(1.0, long)


def test_other_events_between_those_of_the_form_are_read_too() -> None:
    last = json.dumps({"choices": [{"text": "z", "token_ids": [1], "finish_reason": "length"}]}).encode()
    usage = b'{"choices":[],"usage":{"completion_tokens":3}}'
    two = worker("ab", 1).replace(b"[1]", b"[1,2]")
    failed = b'{"error":{"message":"gone"}}'
    payloads = (
        worker("a", 1),
        reasoning("r", 2),
        vllm_chat("v", 3),
        two,
        worker("b", 4),
        last,
        usage,
        b"{oops",
        failed,
    )
    reader = ChunkReader()
    for payload in payloads + payloads:
        assert reader.read(1.0, payload) == read_chunk(1.0, payload)


def test_a_server_whose_events_all_differ_is_tried_a_few_times_only(parsed: list[bytes]) -> None:
    reader = ChunkReader()
    for number in range(100):
        reader.read(0.0, worker("a", 1).replace(b"1769400000", str(number).encode()))
    assert len(parsed) <= 100 + 3 * event_form._MOST_FORMS


def test_a_text_that_is_not_the_reply_is_not_taken_for_it() -> None:
    """``text`` of a second choice, and one beside the first choice, are no reply."""
    twice = b'{"note":{"text":"n"},"choices":[{"text":"a","index":0},{"text":"b","index":1}]}'
    reader = ChunkReader()
    for payload in (
        twice,
        twice.replace(b'"n"', b'"m"'),
        twice.replace(b'"b"', b'"c"'),
        twice.replace(b'"a"', b'"d"'),
    ):
        assert reader.read(0.0, payload) == read_chunk(0.0, payload)
