from __future__ import annotations

import asyncio

import pytest

from mcp_core.errors import InputError
from mcp_core.evaluation.length_drift import Reply, builtin_prompts, compare, first_difference, replies
from tests.evaluation.bigram_server import Bigrams, running, table


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def reply(words: int, *, capped: bool = False) -> Reply:
    return Reply(text="word " * words, tokens=words, capped=capped)


CHATS = [chat(f"question {index}") for index in range(12)]


@pytest.mark.parametrize(
    ("reference", "candidate", "at"),
    [
        ("a b c", "a b c", None),
        ("a  b\nc", "a b c ", None),
        ("a b c", "a x c", 1),
        ("a b", "a b c", 2),
        ("", "a", 0),
    ],
)
def test_the_first_word_that_differs(reference: str, candidate: str, at: int | None) -> None:
    assert first_difference(reference, candidate) == at


def test_equal_replies_show_no_drift() -> None:
    same = [reply(10 + index) for index in range(12)]
    drift = compare(CHATS, ("native", same), ("nf4", same), 64)
    assert drift.ratio is not None
    assert (drift.ratio.low, drift.ratio.value, drift.ratio.high) == (1, 1, 1)
    assert (drift.identical, drift.verdict) == (1, "no difference in length was found")


def test_longer_replies_are_found_and_capped_ones_counted() -> None:
    short = [reply(10 + index % 3) for index in range(12)]
    long = [reply(14 + index % 4, capped=index < 3) for index in range(12)]
    drift = compare(CHATS, ("native", short), ("nf4", long), 64)
    assert drift.ratio is not None
    assert drift.ratio.value == pytest.approx(
        sum(14 + i % 4 for i in range(12)) / sum(10 + i % 3 for i in range(12))
    )
    assert drift.verdict == "the candidate says more"
    assert compare(CHATS, ("nf4", long), ("native", short), 64).verdict == "the candidate says less"
    assert (drift.reference_capped, drift.candidate_capped, drift.identical) == (0, 0.25, 0)
    assert drift.pairs[0].diverges_at == 10


def test_lengths_that_go_both_ways_are_no_drift() -> None:
    ours = [reply(10) for _ in range(12)]
    theirs = [reply(6 if index % 2 else 14) for index in range(12)]
    assert compare(CHATS, ("a", ours), ("b", theirs), 64).verdict == "no difference in length was found"


def test_without_prompts_there_is_nothing_to_compare() -> None:
    with pytest.raises(InputError, match="no prompt"):
        compare([], ("a", []), ("b", []), 64)


def test_replies_are_read_to_their_end_with_the_servers_own_count() -> None:
    server = Bigrams(table(1), replies={"one": ("yes it is", "stop"), "two": ("on and on", "length")})
    counted = []

    async def run() -> tuple[Reply, ...]:
        async with running(server) as endpoint:
            return await replies(endpoint, [chat("one"), chat("two")], 32, counted.append)

    assert asyncio.run(run()) == (
        Reply(text="yes it is ", tokens=3, capped=False),
        Reply(text="on and on ", tokens=3, capped=True),
    )
    assert counted == [1, 2]
    assert all((body["temperature"], body["max_tokens"]) == (0, 32) for body in server.bodies)


def test_the_built_in_prompts_are_chats() -> None:
    prompts = builtin_prompts()
    assert len(prompts) == 16
    assert all(each.messages[-1].role == "user" for each in prompts)
