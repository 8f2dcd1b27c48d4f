from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mcp_core.serving.text import Detokenizer, StopStrings, TokenTexts, encode

TEXT = "The café costs 5 €, the 👩‍🚀 pays.\n\tدعني 漢字 end"


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """Words with the space in front, as Llama-2's: the decoder strips the space of the first one."""
    words = [
        "<unk>",
        "▁The",
        "▁capital",
        "▁is",
        "▁Paris",
        ".",
        "▁",
        "a",
        *[f"<0x{byte:02X}>" for byte in range(256)],
    ]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def test_the_pieces_of_a_byte_level_stream_join_to_the_text_and_no_character_is_torn() -> None:
    tokenizer = byte_level()
    ids = encode(tokenizer, TEXT, add_special_tokens=True)
    assert len(ids) == len(TEXT.encode())
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) == TEXT
    assert detokenizer.flush() == ""
    assert all("\ufffd" not in piece for piece in pieces)
    assert pieces[TEXT.encode().index("€".encode()) :][:3] == ["", "", "€"]


def test_bytes_that_make_no_character_come_out_at_last() -> None:
    tokenizer = byte_level()
    continuation = encode(tokenizer, "€", add_special_tokens=False)[1]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(continuation) for _ in range(40)]
    assert "".join(pieces) + detokenizer.flush() == "\ufffd" * 40
    assert max(len(piece) for piece in pieces) <= 10


def test_any_tokens_join_to_what_decoding_at_once_gives() -> None:
    tokenizer = byte_level()
    generator = random.Random(0)
    for _ in range(50):
        text = "".join(generator.choice("ab €é👩🚀\n字") for _ in range(30))
        ids = list(encode(tokenizer, text, add_special_tokens=False))
        for _ in range(3):
            ids.insert(generator.randrange(len(ids)), 256)  # special tokens between: never shown
        ids = [token for token in ids if token != 256 or generator.random() < 0.7]
        detokenizer = Detokenizer(tokenizer, ids[:2])
        joined = "".join(detokenizer.push(token) for token in ids[2:]) + detokenizer.flush()
        assert joined.replace("\ufffd", "") == tokenizer.decode(ids[2:]).replace("\ufffd", "")


def test_the_first_word_of_a_continuation_keeps_its_space() -> None:
    tokenizer = sentencepiece_like()
    prompt, paris = (1, 2, 3), 4
    assert tokenizer.decode([paris]) == "Paris"
    assert Detokenizer(tokenizer, prompt).push(paris) == " Paris"
    assert Detokenizer(tokenizer).push(paris) == "Paris"


def test_encoding_adds_special_tokens_once_and_only_when_asked() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_level()
    tokenizer.post_processor = TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 256)])
    assert encode(tokenizer, "a", add_special_tokens=True)[0] == 256
    assert 256 not in encode(tokenizer, "a", add_special_tokens=False)
    assert encode(tokenizer, "<|end|>a", add_special_tokens=False)[0] == 256


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "matched"),
    [
        (["He", "llo", "\n\nUs", "er: x"], ["\n\nUser:"], ["He", "llo", "", ""], True),
        (["a\n", "\nb", "c"], ["\n\nUser:"], ["a", "\n\nb", "c"], False),
        (["abcabd"], ["abd"], ["abc"], True),
        (["aab", "aab", "aac"], ["aabaac"], ["", "aab", ""], True),
        (["one two three"], ["three", "two"], ["one "], True),
        (["x", "y"], [], ["x", "y"], False),
        (["", "st", "", "op!"], ["stop"], ["", "", "", ""], True),
        (["€", "€!"], ["€€!"], ["", ""], True),
    ],
)
def test_text_before_a_stop_string_is_shown_and_no_part_of_it(
    pieces: list[str], stops: list[str], shown: list[str], matched: bool
) -> None:
    cutter = StopStrings(stops)
    results = [cutter.push(piece) for piece in pieces]
    assert [text for text, _ in results] == shown
    assert results[-1][1] is matched


def test_what_was_held_back_is_shown_when_no_stop_string_came() -> None:
    cutter = StopStrings(["stop"])
    assert cutter.push("go st") == ("go ", False)
    assert cutter.flush() == "st"
    assert cutter.flush() == ""


def test_a_single_token_shows_as_its_text_or_its_bytes() -> None:
    tokenizer = byte_level()
    texts = TokenTexts(tokenizer)
    space, euro = (
        encode(tokenizer, " ", add_special_tokens=False)[0],
        encode(tokenizer, "€", add_special_tokens=False),
    )
    assert texts.text(space) == " "
    assert texts.text(euro[0]) == "bytes:\\xe2"
    assert b"".join(texts.bytes(token) for token in euro) == "€".encode()
    assert texts.text(256) == "<|end|>"
    assert texts.bytes(256) == b"<|end|>"


def test_every_byte_of_a_byte_level_and_a_byte_fallback_vocabulary_is_known() -> None:
    texts = TokenTexts(byte_level())
    assert sorted(texts.bytes(token) for token in range(256)) == [bytes([byte]) for byte in range(256)]
    fallback = sentencepiece_like()
    texts = TokenTexts(fallback)
    assert texts.bytes(fallback.token_to_id("<0xE2>")) == b"\xe2"
    assert texts.text(4) == " Paris"
