from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mcp_core.serving.protocol import NEUTRAL_VALUES, ChatRequest, CompletionRequest

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "Hi"}


def problem(model: type[ChatRequest | CompletionRequest], body: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    return dict(caught.value.errors()[0])


def test_defaults_are_openai_s() -> None:
    chat = ChatRequest.model_validate(CHAT)
    assert (chat.n, chat.stream, chat.token_limit, chat.logprob_count, chat.include_usage) == (
        1,
        False,
        None,
        None,
        False,
    )
    assert chat.sampling(0).temperature == 1.0
    assert CompletionRequest.model_validate(COMPLETION).token_limit == 16


def test_null_is_absent() -> None:
    nulls = dict.fromkeys(("temperature", "stop", "n", "seed", "stream", "max_tokens", "tools", "user", "logprobs"))
    assert ChatRequest.model_validate(CHAT | nulls) == ChatRequest.model_validate(CHAT)


def test_every_sampling_field_reaches_the_engine() -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "frequency_penalty": -0.5,
        "presence_penalty": 0.25,
    }
    sampling = ChatRequest.model_validate(CHAT | fields | {"seed": 7}).sampling(2)
    assert {name: getattr(sampling, name) for name in fields} == fields
    assert sampling.seed == 9


@pytest.mark.parametrize(("seed", "choice", "expected"), [(None, 1, None), (2**63 - 1, 1, 0), (-1, 0, 2**63 - 1)])
def test_seeds_stay_within_what_generators_take(seed: int | None, choice: int, expected: int | None) -> None:
    assert ChatRequest.model_validate(CHAT | {"seed": seed}).sampling(choice).seed == expected


def test_top_k_minus_one_is_off() -> None:
    assert ChatRequest.model_validate(CHAT | {"top_k": -1}).sampling(0).top_k == 0


@pytest.mark.parametrize("name", sorted(NEUTRAL_VALUES))
def test_an_openai_field_that_is_not_served_is_refused_by_name_unless_it_asks_for_nothing(name: str) -> None:
    found = problem(ChatRequest, CHAT | {name: {"something": "else"}})
    assert found["ctx"]["param"] == name
    assert found["msg"] == f"{name} is not supported by this server."
    for value in (None, *NEUTRAL_VALUES[name]):
        ChatRequest.model_validate(CHAT | {name: value})


@pytest.mark.parametrize("value", [None, 1])
def test_an_unknown_field_is_refused_by_name(value: Any) -> None:
    assert problem(ChatRequest, CHAT | {"temprature": value})["loc"] == ("temprature",)


def test_labels_are_accepted_and_storing_is_not() -> None:
    labels = {"user": "u", "safety_identifier": "s", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    ChatRequest.model_validate(CHAT | labels)
    assert problem(ChatRequest, CHAT | {"store": True})["loc"] == ("store",)
    assert problem(ChatRequest, CHAT | {"service_tier": "priority"})["loc"] == ("service_tier",)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": [str(number) for number in range(33)]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ],
)
def test_a_bad_value_names_its_field(change: dict[str, Any], place: str) -> None:
    assert problem(ChatRequest, CHAT | change)["loc"][0] == place


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
    ],
)
def test_options_that_do_not_go_together_name_the_field(change: dict[str, Any], param: str) -> None:
    assert problem(ChatRequest, CHAT | change)["ctx"]["param"] == param


def test_the_newer_name_of_max_tokens_counts() -> None:
    assert ChatRequest.model_validate(CHAT | {"max_completion_tokens": 5}).token_limit == 5


@pytest.mark.parametrize(
    ("stop", "expected"), [("END", ["END"]), (list("abcdef"), list("abcdef")), (None, []), ([], [])]
)
def test_stop_is_one_string_or_several(stop: Any, expected: list[str]) -> None:
    assert ChatRequest.model_validate(CHAT | {"stop": stop}).stop == expected


def message(**fields: Any) -> dict[str, Any]:
    return CHAT | {"messages": [{"role": "user", "content": "Hi"} | fields]}


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = ChatRequest.model_validate(message(role="developer", content=parts, name="n"))
    assert request.messages[0].for_template() == {"role": "system", "content": "a\nb", "name": "n"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "type image_url are not supported"),
        ({"content": ["a"]}, "type unknown"),
        ({"content": 5}, "valid string"),
        ({"content": None}, "Field required"),
        ({"role": "tool"}, "'system'"),
        ({"tool_calls": [{"id": "1"}]}, "tool_calls is not supported"),
    ],
)
def test_a_message_that_is_not_text_is_refused(fields: dict[str, Any], words: str) -> None:
    found = problem(ChatRequest, message(**fields))
    assert words in found["msg"]
    assert found["loc"][:2] == ("messages", 0)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hi", ["Hi"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ([[]], [[]]),
    ],
)
def test_a_prompt_has_four_forms(prompt: Any, expected: list[Any]) -> None:
    assert CompletionRequest.model_validate(COMPLETION | {"prompt": prompt}).prompts == expected


@pytest.mark.parametrize("prompt", [5, [], ["a", 1], [1, "a"], [True], [1.5], [["a"]], {"a": 1}, None])
def test_any_other_prompt_is_refused(prompt: Any) -> None:
    assert problem(CompletionRequest, COMPLETION | {"prompt": prompt})["loc"] == ("prompt",)


def test_max_tokens_zero_needs_echo() -> None:
    assert problem(CompletionRequest, COMPLETION | {"max_tokens": 0})["ctx"]["param"] == "max_tokens"
    assert CompletionRequest.model_validate(COMPLETION | {"max_tokens": 0, "echo": True}).token_limit == 0


def test_errors_do_not_repeat_the_prompt() -> None:
    secret = "my secret prompt"
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"prompt": secret, "model": 5})
    assert secret not in str(caught.value)
