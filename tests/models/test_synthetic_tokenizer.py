from __future__ import annotations

import time

import pytest

from mcp_core.models.synthetic_tokenizer import BOS_ID, EOS_ID, synthetic_tokenizer


@pytest.mark.parametrize("vocab", [300, 32_000])
def test_every_id_is_there_once(vocab: int) -> None:
    tokenizer = synthetic_tokenizer(vocab)
    assert tokenizer.get_vocab_size(with_added_tokens=True) == vocab
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab))
    assert (tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")) == (BOS_ID, EOS_ID)


@pytest.mark.parametrize(
    "text", ["Hello, world!", "naïve café — 東京 🦊", " spaces  and\nlines\t", "def f(x): return x"]
)
def test_any_text_survives(text: str) -> None:
    tokenizer = synthetic_tokenizer(1000)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_random_ids_read_as_words() -> None:
    text = synthetic_tokenizer(20_000).decode([300, 5_000, 19_999])
    words = text.split()
    assert len(words) == 3
    assert all(word.isalpha() and word.isascii() for word in words)


def test_a_word_is_one_token() -> None:
    tokenizer = synthetic_tokenizer(400)
    assert tokenizer.encode(tokenizer.decode([350])).ids == [350]


def test_special_tokens_are_hidden_and_recognized() -> None:
    tokenizer = synthetic_tokenizer(300)
    assert tokenizer.encode("<s>a</s>").ids[0] == BOS_ID
    assert tokenizer.decode([BOS_ID, *tokenizer.encode("a").ids, EOS_ID]) == "a"


def test_a_large_vocabulary_takes_under_two_seconds() -> None:
    started = time.process_time()
    assert synthetic_tokenizer(151_936).get_vocab_size() == 151_936
    assert time.process_time() - started < 2.0
