from __future__ import annotations

import json
from collections import Counter

import pytest

from mcp_core import recordings, texts
from mcp_core.errors import WorkloadError
from mcp_core.evaluation.prompts import Vocabulary, prompts_of, text_prompts, token_prompts
from mcp_core.workload import Lengths, SharedPrefix, Workload

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


def test_a_shared_prefix_is_shared_at_the_stated_rate():
    plan = SharedPrefix(groups=3, tokens=40, hit_rate=0.7)
    at = token_prompts(WORKLOAD.model_copy(update={"prefix": plan}), 1000, SPECIAL)
    made = [at(index) for index in range(1000)]
    begins = Counter(prompt.content[:40] for prompt in made)
    shared = {begin for begin, count in begins.items() if count > 1}
    assert len(shared) == 3
    sharing = [prompt for prompt in made if prompt.content[:40] in shared]
    assert len(sharing) == pytest.approx(700, abs=50)
    assert all(prompt.shared_tokens == (40 if prompt.content[:40] in shared else 0) for prompt in made)
    assert {len(prompt.content) for prompt in made} == set(range(45, 101))  # whoever shares, as long
    again = token_prompts(WORKLOAD.model_copy(update={"prefix": plan, "repeat": 1}), 1000, SPECIAL)
    assert not {again(index).content[:40] for index in range(100)} & set(begins)


def test_a_later_turn_sends_all_that_was_said():
    at = token_prompts(WORKLOAD, 100, SPECIAL)
    first = at(3)
    second = at.follow_up(4, first, (7, 8), "")
    assert second.content == (*first.content, 7, 8, *at(4).content)
    text = text_prompts(WORKLOAD)
    said = text.follow_up(4, text(3), (), " yes")
    assert said.content == f"{text(3).content} yes\n\n{text(4).content}"
    chat = text_prompts(WORKLOAD.replace({"prompts.as_chat": True}))
    assert [each.role for each in chat.follow_up(4, chat(3), (), "yes").content] == ["user", "assistant", "user"]


def test_passages_of_the_book_differ_and_are_about_as_long_as_asked():
    at = prompts_of(WORKLOAD.replace({"prompts.kind": "sample"}), Vocabulary(100, SPECIAL))
    made = [at(index) for index in range(200)]
    assert len({prompt.content for prompt in made}) == 200
    words = sum(len(prompt.content.split()) for prompt in made)
    tokens = sum(len(prompt.content) for prompt in prompts())
    assert words * 1.25 == pytest.approx(tokens, rel=0.05)


def test_prompts_of_a_file_go_on_at_the_next_repeat():
    rows = [{"prompt": f"Question {number}?"} for number in range(60)]
    kept = texts.add("mine.jsonl", "\n".join(map(json.dumps, rows)).encode())
    workload = Workload(requests=20, warmup_requests=0, prompts={"kind": "file", "sha256": kept.sha256})
    asked = [[prompts_of(workload.replace({"repeat": r}))(index) for index in range(20)] for r in range(3)]
    said = [prompt.content[0].content for part in asked for prompt in part]
    assert sorted(said) == sorted(row["prompt"] for row in rows)
    assert said != sorted(said)
    assert prompts_of(workload).note == ""
    assert "60 prompts: some were sent more than once" in prompts_of(workload.replace({"requests": 61})).note
    assert prompts_of(workload.replace({"requests": 61, "duration_s": 1})).note == ""  # its records will tell


def test_a_recording_gives_lengths():
    rows = b"\n".join(b'{"at_s": 0, "prompt_tokens": %d, "output_tokens": %d}' % (n, n + 1) for n in (5, 9))
    sha256 = recordings.add("r.jsonl", rows).sha256
    workload = Workload(prompts={"kind": "recording", "sha256": sha256}, arrivals={"kind": "replay"})
    at = prompts_of(workload, Vocabulary(100, SPECIAL))
    assert at.count == 2
    assert [(len(at(index).content), at(index).output_tokens) for index in range(3)] == [(5, 6), (9, 10), (5, 6)]
