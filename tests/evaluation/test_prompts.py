from __future__ import annotations

from collections import Counter

import pytest

from mcp_core.errors import WorkloadError
from mcp_core.evaluation.prompts import text_prompts, token_prompts
from mcp_core.workload import Lengths, Workload

WORKLOAD = Workload(requests=200, prompt_tokens=Lengths(min=5, max=60), output_tokens=Lengths(min=2, max=9), seed=7)
SPECIAL = (0, 1, 2, 99)


def prompts(**changes):
    at = token_prompts(WORKLOAD.replace(changes), 100, SPECIAL)
    return [at(index) for index in range(WORKLOAD.requests)]


def test_the_same_seed_repeat_and_index_give_the_same_prompt():
    assert prompts() == prompts()
    assert token_prompts(WORKLOAD, 100, SPECIAL)(17) == prompts()[17]


def test_values_are_pinned_across_versions():
    # A change here makes every stored Run incomparable with new ones.
    first = token_prompts(Workload(prompt_tokens=Lengths(min=4, max=4)), 1000, ())(0)
    assert first.content == (6, 866, 771, 419)
    assert first.output_tokens == 32


@pytest.mark.parametrize("change", [{"repeat": 1}, {"seed": 8}])
def test_every_repeat_and_seed_draws_new_prompts(change):
    before = {prompt.sha256 for prompt in prompts()}
    assert len(before) == WORKLOAD.requests
    assert not before & {prompt.sha256 for prompt in prompts(**change)}


def test_warm_up_shares_no_prompt_with_what_is_measured():
    at = token_prompts(WORKLOAD, 100, SPECIAL)
    warm = {at(index).sha256 for index in range(200, 210)}
    assert not warm & {prompt.sha256 for prompt in prompts()}


def test_lengths_cover_both_ends_and_ids_are_ordinary():
    made = prompts()
    assert {len(prompt.content) for prompt in made} == set(range(5, 61))
    assert {prompt.output_tokens for prompt in made} == set(range(2, 10))
    ids = Counter(token for prompt in made for token in prompt.content)
    assert set(ids) == set(range(100)) - set(SPECIAL)
    mean = ids.total() / 96
    assert all(0.5 * mean < count < 1.7 * mean for count in ids.values())


def test_text_prompts_have_as_many_words_as_tokens_were_asked():
    at, tokens = text_prompts(WORKLOAD), token_prompts(WORKLOAD, 100, SPECIAL)
    for index in range(20):
        assert len(at(index).content.split()) == len(tokens(index).content)
        assert at(index).output_tokens == tokens(index).output_tokens


def test_a_vocabulary_of_special_tokens_is_refused():
    with pytest.raises(WorkloadError, match="only special tokens"):
        token_prompts(WORKLOAD, 3, (0, 1, 2))
