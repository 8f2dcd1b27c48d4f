from __future__ import annotations

import re

import pytest

from mcp_core.documents import Message
from mcp_core.errors import InputError
from mcp_core.text_files import MOST_BYTES, read_documents, split_prose

LONG = "word " * 60


def test_prose_is_split_at_paragraphs_and_nothing_is_lost() -> None:
    paragraphs = [f"Paragraph {index}. " + "Some words stand here. " * 20 for index in range(40)]
    text = "\n\n".join(paragraphs)
    passages = split_prose(text, "prose")
    assert "\n\n".join(each.text or "" for each in passages) == text
    assert all(2000 <= each.characters < 2700 for each in passages[:-1])
    assert len({each.name for each in passages}) == len(passages)


def test_a_text_without_blank_lines_is_split_after_sentences() -> None:
    text = "This sentence is exactly as long as it has to be. " * 400
    passages = split_prose(text, "prose")
    assert all((each.text or "").rstrip().endswith(".") for each in passages)
    assert max(each.characters for each in passages) <= 6000
    assert re.sub(r"\s", "", "".join(each.text or "" for each in passages)) == re.sub(r"\s", "", text)


def test_a_text_without_any_space_is_split_too() -> None:
    passages = split_prose("x" * 10_001, "own")
    assert "".join(each.text or "" for each in passages).replace("\n", "") == "x" * 10_001
    assert len(passages) >= 3


def test_json_rows() -> None:
    rows = (
        f'{{"text": "{LONG}"}}\n\n'
        '{"prompt": "Why?", "stratum": "questions"}\n'
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    text, prompt, chat = read_documents("rows.jsonl", rows.encode())
    assert text.text == LONG
    assert text.name == "row 1"
    assert (prompt.messages, prompt.stratum) == ((Message("user", "Why?"),), "questions")
    assert chat.messages == (Message("user", "a"), Message("assistant", "b"))


def test_csv_rows() -> None:
    rows = f'text,prompt\n"{LONG}, with ""quotes"" and\na second line",\n,Why?\n'
    text, prompt = read_documents("rows.csv", rows.encode())
    assert text.text == f'{LONG}, with "quotes" and\na second line'
    assert prompt.messages == (Message("user", "Why?"),)


def test_a_byte_order_mark_and_windows_line_ends_are_no_text() -> None:
    (document,) = read_documents("a.txt", b"\xef\xbb\xbf" + (LONG + "\r\n" + LONG).encode())
    assert document.text == LONG + "\n" + LONG


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b" \n\t ", "a.txt is empty"),
        ("a.txt", b"Too short.", r"a.txt has 10 characters of text; at least 200"),
        ("a.txt", b"x" * (MOST_BYTES + 1), "at most 34 MB"),
        ("a.txt", b"one\ntwo caf\xe9 " + b"x" * 300, r"byte 0xe9 at position 11 \(line 2\)"),
        ("a.txt", LONG.encode("utf-16"), "is UTF-16, not UTF-8"),
        ("a.txt", b"\0" * 400, "is a binary file"),
        ("a.jsonl", b'{"text": "ok"}\n{nope}\n', "line 2, is not JSON"),
        ("a.jsonl", b'{"text": "ok", "n": ' + b"1" * 5000 + b"}", "line 1, cannot be read: .*5000 digits"),
        ("a.jsonl", b"[" * 100_000, "line 1, cannot be read: maximum recursion"),
        ("a.jsonl", b'{"text": "' + b"word " * 99 + b'\\ud800"}', "row 1, has half of a surrogate pair"),
        ("a.jsonl", b'["text"]', "line 1, is not a JSON object"),
        ("a.jsonl", b'{"body": "x"}', "line 1, has no text"),
        ("a.jsonl", b'{"text": "x", "prompt": "y"}', "line 1, has text and prompt"),
        ("a.jsonl", b'{"text": 5}', '"text" is not a text'),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', '"messages" is not a list'),
        ("a.jsonl", b'{"messages": [{"role": "judge", "content": "x"}]}', '"messages" is not a list'),
        ("a.jsonl", b'{"messages": "hello"}', '"messages" is not a list'),
        ("a.csv", b"body\nx\n", 'no column "text"'),
        ("a.csv", b'text\n"never closed\n', "is not CSV"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(name: str, content: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_documents(name, content)
    assert caught.value.hint
