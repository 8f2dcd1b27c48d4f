"""A tokenizer of any vocabulary size for models with random weights: any text in, readable nonsense out.

This file does not know about models; its ids mean nothing to one.
"""

from __future__ import annotations

from itertools import product

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

__all__ = ["BOS", "BOS_ID", "CHAT_TEMPLATE", "EOS", "EOS_ID", "synthetic_tokenizer"]

BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 256, 257
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

_SYLLABLES = [consonant + vowel for consonant, vowel in product("bcdfghjklmnpqrstvwxz", "aeiou")]
_SPACE = "\u0120"  # how byte-level vocabularies spell a leading space


def synthetic_tokenizer(vocab: int) -> Tokenizer:
    """Exactly ``vocab`` ids (300 to 1,000,000): 256 bytes, BOS, EOS, and made-up words with a leading space."""
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), BOS, EOS]
    names += [_word(number) for number in range(vocab - len(names))]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (BOS, EOS)])
    return tokenizer


def _word(number: int) -> str:
    """Two syllables for the first 10,000 numbers, three for the next million; no two alike."""
    base = len(_SYLLABLES)
    two = base * base
    digits = divmod(number, base) if number < two else _three_digits(number - two, base)
    return _SPACE + "".join(_SYLLABLES[digit] for digit in digits)


def _three_digits(number: int, base: int) -> tuple[int, int, int]:
    rest, last = divmod(number, base)
    return (*divmod(rest, base), last)
