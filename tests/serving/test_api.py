from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from openai import OpenAI

from mcp_core.errors import RequestRejected
from mcp_core.serving.fake_engine import BOS, EOS, FakeModel
from mcp_core.serving.text import encode

REPLY = "Hello, world! This is a scripted reply."
USER: list[Any] = [{"role": "user", "content": "Hi"}]
PROMPT = "The capital of France is"
Serve = Callable[..., Any]


@pytest.fixture
def client_of() -> Iterator[Callable[[Any], OpenAI]]:
    clients: list[OpenAI] = []

    def make(server: Any) -> OpenAI:
        clients.append(OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def post(url: str, body: Any, **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Any bytes as a body; the status, JSON and headers that come back, errors too."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read()), _lower(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), _lower(error.headers)


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def events_of(url: str, body: Any) -> list[Any]:
    """Every data line of a stream, parsed; the last one may be "[DONE]"."""
    request = urllib.request.Request(url, json.dumps(body | {"stream": True}).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = [line[6:].decode() for line in response.read().split(b"\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


# --- what a client gets -------------------------------------------------------------------------------------


def test_chat_gives_the_whole_reply_with_usage(serve: Serve, client_of: Any, model_id: str) -> None:
    server = serve(REPLY)
    answer = client_of(server).chat.completions.create(model=model_id, messages=USER)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", REPLY, "stop")
    assert answer.object == "chat.completion"
    prompt = "<user>Hi\n<assistant>"
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(REPLY) + 1  # the end-of-text token counts
    assert set(answer.usage.timing) == {"queue_ms", "prefill_ms", "decode_ms"}
    request = server.engine.requests[0]
    assert request.prompt == encode(FakeModel().tokenizer, prompt, add_special_tokens=False)
    assert request.max_tokens == FakeModel().max_context - len(prompt)  # by default the rest of the context


def test_chat_streams_one_chunk_a_token(serve: Serve, client_of: Any, model_id: str) -> None:
    text = "5 € for 👩‍🚀"
    stream = client_of(serve(text)).chat.completions.create(model=model_id, messages=USER, stream=True)
    chunks = list(stream)
    assert len(chunks) == len(text.encode()) + 1
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == text
    assert [len(chunk.choices[0].token_ids) for chunk in chunks] == [1] * len(chunks)
    assert chunks[-1].choices[0].token_ids == [EOS]
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", *[None] * (len(chunks) - 1)]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [*[None] * (len(chunks) - 1), "stop"]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage.completion_tokens == len(chunks)
    assert chunks[-1].usage.timing["decode_ms"] > 0
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1


def test_completions_give_and_stream_the_same(serve: Serve, client_of: Any, model_id: str) -> None:
    server = serve(REPLY)
    completions = client_of(server).completions
    whole = completions.create(model=model_id, prompt=PROMPT)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (REPLY[:16], "length")  # 16 by default
    chunks = list(completions.create(model=model_id, prompt=PROMPT, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == REPLY[:16]
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens == len(PROMPT) + 16
    assert {chunk.object for chunk in chunks} == {"text_completion"}


def test_include_usage_adds_a_chunk_without_choices(serve: Serve, client_of: Any, model_id: str) -> None:
    options = {"include_usage": True}
    chunks = list(
        client_of(serve(REPLY)).chat.completions.create(
            model=model_id, messages=USER, stream=True, stream_options=options, max_tokens=3
        )
    )
    assert [len(chunk.choices) for chunk in chunks] == [1, 1, 1, 0]
    assert chunks[-1].usage.completion_tokens == 3
    assert chunks[-1].usage.timing == chunks[-2].usage.timing


def test_a_stream_ends_with_done(serve: Serve, model_id: str) -> None:
    events = events_of(serve(REPLY).url + "/v1/completions", {"model": model_id, "prompt": "x", "max_tokens": 2})
    assert [event == "[DONE]" for event in events] == [False, False, True]


def test_every_prompt_form_reaches_the_engine(serve: Serve, client_of: Any, model_id: str) -> None:
    server = serve(REPLY)
    completions = client_of(server).completions
    for prompt in ("a", ["a", "b"], [64, 65], [[64], [64, 65]]):
        answer = completions.create(model=model_id, prompt=prompt, max_tokens=1)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    a, b = (encode(FakeModel().tokenizer, text, add_special_tokens=False) for text in "ab")
    assert [request.prompt for request in server.engine.requests] == [a, a, b, (64, 65), (64,), (64, 65)]
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 2


def test_a_long_prompt_is_tokenized_whole(serve: Serve, client_of: Any, model_id: str) -> None:
    server = serve(REPLY, model=replace(FakeModel(), max_context=10_000))
    client_of(server).completions.create(model=model_id, prompt="word " * 1000, max_tokens=1)
    assert len(server.engine.requests[0].prompt) == 5000


def test_n_choices_have_their_own_seeds(serve: Serve, client_of: Any, model_id: str) -> None:
    server = serve(REPLY)
    answer = client_of(server).chat.completions.create(model=model_id, messages=USER, n=3, seed=7, max_tokens=5)
    assert [choice.message.content for choice in answer.choices] == [REPLY[:5]] * 3
    assert [request.sampling.seed for request in server.engine.requests] == [7, 8, 9]
    assert answer.usage.prompt_tokens == len("<user>Hi\n<assistant>")
    assert answer.usage.completion_tokens == 15


def test_n_choices_stream_side_by_side(serve: Serve, client_of: Any, model_id: str) -> None:
    stream = client_of(serve(REPLY)).completions.create(model=model_id, prompt="x", n=2, max_tokens=4, stream=True)
    texts, ends = ["", ""], []
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
        ends += [chunk.usage.completion_tokens] if chunk.usage else []
    assert (texts, ends) == ([REPLY[:4]] * 2, [4, 4])


def test_every_request_field_reaches_the_engine(serve: Serve, client_of: Any, model_id: str) -> None:
    server = serve(REPLY)
    ours = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "ignore_eos": True}
    client_of(server).chat.completions.create(
        model=model_id,
        messages=USER,
        temperature=0.3,
        top_p=0.8,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        seed=1,
        max_completion_tokens=4,
        user="me",
        metadata={"a": "b"},
        extra_body=ours,
    )
    request = server.engine.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.3, 0.8, 5, 0.1)
    assert (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (1.2, 0.1, 0.2)
    assert (request.max_tokens, request.min_tokens, request.ignore_eos, sampling.seed) == (4, 2, True, 1)


def test_a_reply_is_clipped_to_the_context(serve: Serve, client_of: Any, model_id: str) -> None:
    server = serve(REPLY, end=False, model=replace(FakeModel(), max_context=16))
    answer = client_of(server).completions.create(model=model_id, prompt="0123456789", max_tokens=100)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 6)


# --- stop strings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["This is", ["never", "This is"]])
def test_a_stop_string_ends_the_text_before_it_and_the_engine_s_work(
    serve: Serve, client_of: Any, model_id: str, stop: Any
) -> None:
    server = serve(REPLY, end=False, token_s=0.005)
    answer = client_of(server).completions.create(model=model_id, prompt="x", max_tokens=500, stop=stop)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello, world! ", "stop")
    assert answer.usage.completion_tokens == len("Hello, world! This is")
    assert answer.usage.timing["decode_ms"] > 0
    assert server.engine.stats().cancelled_total == 1
    assert server.engine.stats().running == 0


def test_a_stop_string_holds_back_text_but_no_chunk(serve: Serve, client_of: Any, model_id: str) -> None:
    server = serve("ab--c---d", end=False, token_s=0.005)
    stream = client_of(server).completions.create(
        model=model_id, prompt="x", max_tokens=500, stop="---", stream=True
    )
    chunks = list(stream)
    assert [chunk.choices[0].text for chunk in chunks] == ["a", "b", "", "", "--c", "", "", ""]
    assert all(len(chunk.choices[0].token_ids) == 1 for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 8


def test_text_held_back_at_the_end_is_sent(serve: Serve, client_of: Any, model_id: str) -> None:
    completions = client_of(serve("a--")).completions
    assert completions.create(model=model_id, prompt="x", stop="---").choices[0].text == "a--"
    answer = completions.create(model=model_id, prompt="x", stop="---", max_tokens=2)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("a-", "length")


def test_a_stop_string_on_the_last_token_is_a_stop(serve: Serve, client_of: Any, model_id: str) -> None:
    server = serve("abc", end=False)
    answer = client_of(server).completions.create(model=model_id, prompt="x", stop="c", max_tokens=3)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("ab", "stop")
    assert server.engine.stats().cancelled_total == 0


def test_min_tokens_come_before_any_stop(serve: Serve, client_of: Any, model_id: str) -> None:
    answer = client_of(serve("abcabc", end=False, token_s=0.005)).completions.create(
        model=model_id, prompt="x", stop="c", max_tokens=9, extra_body={"min_tokens": 4}
    )
    assert answer.choices[0].text == "abcab"


# --- log-probabilities --------------------------------------------------------------------------------------


def test_chat_logprobs(serve: Serve, client_of: Any, model_id: str) -> None:
    answer = client_of(serve("é!")).chat.completions.create(
        model=model_id, messages=USER, logprobs=True, top_logprobs=2, max_tokens=3
    )
    content = answer.choices[0].logprobs.content
    assert [entry.logprob for entry in content] == [-0.5] * 3
    assert bytes(byte for entry in content for byte in entry.bytes).decode() == "é!"
    assert content[0].token == "bytes:\\xc3"
    assert [(top.token, top.logprob) for top in content[2].top_logprobs] == [("!", -0.5), ('"', -1.5)]


def test_chat_logprobs_stream_with_their_tokens(serve: Serve, client_of: Any, model_id: str) -> None:
    stream = client_of(serve("ab")).chat.completions.create(
        model=model_id, messages=USER, logprobs=True, stream=True
    )
    assert [[entry.token for entry in chunk.choices[0].logprobs.content] for chunk in stream] == [
        ["a"],
        ["b"],
        ["<|eos|>"],
    ]


def test_completion_logprobs(serve: Serve, client_of: Any, model_id: str) -> None:
    answer = client_of(serve("ab!", end=False)).completions.create(
        model=model_id, prompt="x", max_tokens=3, logprobs=1
    )
    logprobs = answer.choices[0].logprobs
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (
        ["a", "b", "!"],
        [-0.5] * 3,
        [0, 1, 2],
    )
    assert logprobs.top_logprobs == [{"a": -0.5}, {"b": -0.5}, {"!": -0.5}]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_lm_eval_scores_a_batch_of_token_lists_by_echo(serve: Serve, model_id: str, max_tokens: int) -> None:
    """As lm-eval's local-completions asks and reads: context of 2 tokens, continuation of the rest."""
    prompts = [[64, 65, 66, 67], [70, 71, 72]]
    body = {"prompt": prompts, "model": model_id, "max_tokens": max_tokens, "logprobs": 1, "seed": 1234}
    url = serve(REPLY).url + "/v1/completions"
    status, answer, _ = post(url, body | {"temperature": 0, "echo": True})
    assert status == 200
    for choice, prompt in zip(answer["choices"], prompts, strict=True):
        logprobs = choice["logprobs"]
        assert logprobs["token_logprobs"] == [None, *[-0.5] * (len(prompt) - 1 + max_tokens)]
        assert logprobs["top_logprobs"][0] is None
        assert all(
            max(top, key=top.get) == token
            for token, top in list(zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))[1:]
        )
        assert "".join(logprobs["tokens"]) == choice["text"]
        assert logprobs["text_offset"] == list(range(len(prompt) + max_tokens))
        assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2 * max_tokens


def test_logprobs_name_tokens_by_id_on_request(serve: Serve, model_id: str) -> None:
    body = {"prompt": [64, 65], "model": model_id, "max_tokens": 0, "logprobs": 2, "echo": True}
    _, answer, _ = post(serve(REPLY).url + "/v1/completions", body | {"return_tokens_as_token_ids": True})
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["token_id:64", "token_id:65"]
    assert logprobs["top_logprobs"] == [None, {"token_id:65": -0.5, "token_id:66": -1.5}]
    assert (answer["choices"][0]["text"], logprobs["text_offset"]) == ("ab", [0, 1])


def test_echo_begins_the_text_with_the_prompt(serve: Serve, client_of: Any, model_id: str) -> None:
    completions = client_of(serve("abc")).completions
    assert completions.create(model=model_id, prompt="é: ", echo=True).choices[0].text == "é: abc"
    only = completions.create(model=model_id, prompt=[64, BOS], echo=True, max_tokens=0).choices[0]
    assert (only.text, only.finish_reason, only.logprobs) == ("a<|bos|>", "length", None)
    chunks = list(completions.create(model=model_id, prompt="x: ", echo=True, stream=True))
    assert chunks[0].choices[0].text == "x: a"


def test_echo_of_a_text_leaves_out_what_the_tokenizer_added(serve: Serve, client_of: Any, model_id: str) -> None:
    from tokenizers.processors import TemplateProcessing

    model = FakeModel()
    model.tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)])
    server = serve("z", model=model)
    answer = client_of(server).completions.create(model=model_id, prompt="ab", echo=True, max_tokens=1, logprobs=0)
    assert answer.choices[0].text == "abz"
    assert answer.choices[0].logprobs.tokens == ["<|bos|>", "a", "b", "z"]
    assert answer.choices[0].logprobs.text_offset == [0, 0, 1, 2]
    client_of(server).chat.completions.create(model=model_id, messages=USER, max_tokens=1)
    assert server.engine.requests[0].prompt[0] == BOS
    assert BOS not in server.engine.requests[1].prompt  # a chat template writes its own


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"temprature": 1}, "temprature", "Unknown field: temprature."),
        ({"temperature": 9}, "temperature", "less than or equal to 2"),
        ({"messages": []}, "messages", "at least 1 item"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
            "image_url are not supported",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "surrogate"),
        ({"n": 65}, "n", "65 choices"),
        ({"model": 5}, "model", "string"),
    ],
)
def test_a_bad_chat_request_is_a_400_in_openai_s_form(
    serve: Serve, model_id: str, change: dict[str, Any], param: str, words: str
) -> None:
    status, body, _ = post(serve().url + "/v1/chat/completions", {"model": model_id, "messages": USER} | change)
    assert status == 400
    error = body["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, None)
    assert words in error["message"]


@pytest.mark.parametrize(
    ("change", "param", "code", "words"),
    [
        ({"prompt": ""}, "prompt", None, "empty"),
        ({"prompt": []}, "prompt", None, "not empty"),
        ({"prompt": [[]]}, "prompt", None, "empty"),
        ({"prompt": [258]}, "prompt", None, "0 to 257"),
        ({"prompt": [-1]}, "prompt", None, "0 to 257"),
        ({"prompt": "x" * 1024}, "prompt", "context_length_exceeded", "holds 1024 tokens; the prompt has 1024"),
        ({"prompt": "x" * 1025, "max_tokens": 0, "echo": True}, "prompt", "context_length_exceeded", "has 1025"),
        ({"prompt": ["x"] * 65}, "prompt", None, "65 choices"),
        ({"suffix": "end"}, "suffix", None, "not supported"),
        ({"best_of": 2}, "best_of", None, "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", None, "not supported"),
        ({"max_tokens": 0}, "max_tokens", None, "echo"),
    ],
)
def test_a_bad_completion_request_is_a_400_in_openai_s_form(
    serve: Serve, model_id: str, change: dict[str, Any], param: str, code: str | None, words: str
) -> None:
    server = serve()
    status, body, _ = post(server.url + "/v1/completions", {"model": model_id, "prompt": "x"} | change)
    assert (status, body["error"]["param"], body["error"]["code"]) == (400, param, code)
    assert words in body["error"]["message"]
    assert server.engine.requests == []


def test_a_prompt_that_fills_the_context_can_still_be_scored(serve: Serve, model_id: str) -> None:
    body = {"model": model_id, "prompt": "x" * 1024, "max_tokens": 0, "echo": True, "logprobs": 0}
    status, answer, _ = post(serve().url + "/v1/completions", body)
    assert status == 200
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 1024


def test_another_model_is_not_found(serve: Serve, client_of: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client_of(serve()).chat.completions.create(model="gpt-4", messages=USER)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{not json", "not valid JSON"),
        (b"[1, 2]", "valid dictionary"),
        (b"", "missing"),
        (b"\xff\xfe", "body"),
        (b"[" * 100_000, "body"),
    ],
)
def test_a_body_that_is_not_a_json_object_is_a_400(serve: Serve, body: bytes, words: str) -> None:
    status, answer, _ = post(serve().url + "/v1/completions", body)
    assert status == 400
    assert words in answer["error"]["message"]


def test_a_body_over_the_limit_is_a_413(serve: Serve, model_id: str) -> None:
    server = serve()
    url = server.url + "/v1/completions"
    large = json.dumps({"model": model_id, "prompt": "x" * 9 * 1024**2}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(large)
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")  # before the body is sent

    def in_pieces() -> Iterator[bytes]:
        yield from (large[start : start + 2**20] for start in range(0, len(large), 2**20))

    request = urllib.request.Request(url, in_pieces(), {"Content-Type": "application/json"})  # type: ignore[arg-type]
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    with caught.value as error:
        assert error.code == 413
        assert "larger than" in json.loads(error.read())["error"]["message"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_memory_that_runs_out_before_the_engine_is_named(
    serve: Serve, model_id: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fails(*_: Any, **__: Any) -> None:
        raise error

    server = serve()
    monkeypatch.setattr(server.service, "complete", fails)
    status, body, _ = post(server.url + "/v1/completions", {"model": model_id, "prompt": "x"})
    assert (status, body["error"]["kind"]) == (500, "oom")
    assert body["error"]["hint"]


def test_one_model_is_described_by_its_id(serve: Serve, client_of: Any, model_id: str) -> None:
    client = client_of(serve())
    assert client.models.retrieve(model_id) == client.models.list().data[0]
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        client.models.retrieve("another/model")


def test_unknown_routes_and_methods_answer_in_the_same_form(serve: Serve) -> None:
    url = serve().url
    assert post(url + "/v1/embeddings", {})[0] == 404
    status, body, _ = post(url + "/v1/models", {})
    assert (status, body["error"]["message"]) == (405, "Method Not Allowed")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:99", 200),
        ("[::1]:99", 200),
        ("LOCALHOST", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("", 403),
    ],
)
def test_a_foreign_host_header_is_refused_on_every_route(serve: Serve, host: str, status: int) -> None:
    server = serve()
    for path in ("/v1/models", "/health", "/metrics"):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert connection.recv(100).startswith(f"HTTP/1.1 {status} ".encode())


def test_a_form_is_refused_and_no_answer_allows_another_origin(serve: Serve, model_id: str) -> None:
    url = serve().url + "/v1/completions"
    body = {"model": model_id, "prompt": "x", "max_tokens": 1}
    assert post(url, body, **{"Content-Type": "text/plain"})[0] == 415
    status, _, headers = post(url, body, Origin="https://evil.example")
    assert status == 200
    assert not any(name.startswith("access-control") for name in headers)


def test_a_full_queue_is_a_503_with_retry_after_and_nothing_stays_behind(serve: Serve, model_id: str) -> None:
    server = serve(end=False, token_s=0.02, max_requests=2)
    url, body = server.url + "/v1/completions", {"model": model_id, "prompt": "x", "max_tokens": 20}
    first = threading.Thread(target=post, args=(url, body))
    first.start()
    server.wait_for(lambda: server.engine.stats().running == 1)
    status, answer, headers = post(url, body | {"n": 2})
    assert (status, headers["retry-after"], answer["error"]["code"]) == (503, "1", "queue_full")
    first.join()
    server.wait_for(lambda: server.engine.stats().running + server.engine.stats().queued == 0)


# --- failures and clients that go ---------------------------------------------------------------------------


def test_an_engine_error_before_the_first_token_is_a_500(serve: Serve, model_id: str) -> None:
    server = serve(fail_at=0)
    for stream in (False, True):
        body = {"model": model_id, "prompt": "x", "stream": stream}
        status, answer, _ = post(server.url + "/v1/completions", body)
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert answer["error"]["kind"] == "oom"
        assert "Memory ran out" in answer["error"]["message"]


def test_an_engine_error_in_a_stream_is_an_event_and_no_done(serve: Serve, client_of: Any, model_id: str) -> None:
    server = serve(fail_at=3)
    events = events_of(server.url + "/v1/completions", {"model": model_id, "prompt": "x"})
    assert ["error" in event for event in events] == [False, False, False, True]
    with pytest.raises(openai.APIError, match="Memory ran out"):
        list(client_of(server).completions.create(model=model_id, prompt="x", stream=True))


def test_one_failed_choice_ends_the_others(serve: Serve, model_id: str) -> None:
    server = serve(fail_at=3, end=False)
    assert post(server.url + "/v1/completions", {"model": model_id, "prompt": "x", "n": 3})[0] == 500
    server.wait_for(lambda: server.engine.stats().running + server.engine.stats().queued == 0)


def test_an_unexpected_error_tells_a_client_nothing_of_the_inside(serve: Serve, model_id: str, caplog: Any) -> None:
    server = serve()
    server.service.complete = None  # as a defect would be: TypeError in the route
    status, answer, _ = post(server.url + "/v1/completions", {"model": model_id, "prompt": "secret prompt"})
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert "TypeError" not in answer["error"]["message"]
    assert "secret prompt" not in caplog.text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prefill_s", [0.0, 30.0])
def test_a_client_that_disconnects_stops_the_engine_at_once(
    serve: Serve, model_id: str, stream: bool, prefill_s: float
) -> None:
    server = serve(end=False, token_s=0.005, prefill_s=prefill_s, model=replace(FakeModel(), max_context=100_000))
    body = json.dumps({"model": model_id, "prompt": "x", "max_tokens": 90_000, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        server.wait_for(lambda: server.engine.stats().running + server.engine.stats().queued == 1)
        if stream and not prefill_s:
            assert connection.recv(10)
    gone = time.monotonic()
    server.wait_for(lambda: server.engine.stats().cancelled_total == 1)
    assert time.monotonic() - gone < 1
    assert server.engine.stats().running == 0
    assert (
        'finished_reason="abort",model_name="smollm2-135m-instruct"} 1.0'
        in server.service.metrics.render().decode()
    )


def test_a_shut_down_engine_ends_its_streams_with_an_error(serve: Serve, model_id: str) -> None:
    server = serve(end=False, token_s=0.005, model=replace(FakeModel(), max_context=100_000))
    body = {"model": model_id, "prompt": "x", "max_tokens": 90_000}
    events: list[Any] = []
    reader = threading.Thread(target=lambda: events.extend(events_of(server.url + "/v1/completions", body)))
    reader.start()
    server.wait_for(lambda: server.engine.stats().output_tokens_total > 2)
    server.engine.close()
    reader.join(10)
    assert events[-1]["error"]["kind"] == "cancelled"


# --- templates ----------------------------------------------------------------------------------------------


def test_without_a_chat_template_completions_still_work(serve: Serve, client_of: Any, model_id: str) -> None:
    client = client_of(serve("ab", model=replace(FakeModel(), chat_template=None)))
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model=model_id, messages=USER)
    assert client.completions.create(model=model_id, prompt="x").choices[0].text == "ab"


def test_a_template_that_loops_is_a_400_that_names_it(serve: Serve, client_of: Any, model_id: str) -> None:
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    client = client_of(serve(model=replace(FakeModel(), chat_template=loop)))
    with pytest.raises(openai.BadRequestError, match=r"chat template did not finish in 2 s"):
        client.chat.completions.create(model=model_id, messages=USER)


# --- the rest -----------------------------------------------------------------------------------------------


def test_models_lists_the_one_model(serve: Serve, client_of: Any, model_id: str) -> None:
    (card,) = client_of(serve()).models.list()
    assert (card.id, card.object, card.max_model_len) == (model_id, "model", 1024)


def test_health_says_whether_requests_are_taken(serve: Serve) -> None:
    server = serve()
    with urllib.request.urlopen(server.url + "/health") as response:
        assert json.load(response) == {"status": "ready"}
    server.service.ready = False
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(server.url + "/health")
    with caught.value as error:
        assert error.code == 503


def test_metrics_count_what_was_served(serve: Serve, client_of: Any, model_id: str) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    server = serve(REPLY)
    client_of(server).completions.create(model=model_id, prompt="abcd", max_tokens=5)
    with urllib.request.urlopen(server.url + "/metrics") as response:
        families = text_string_to_metric_families(response.read().decode())
        samples = {
            (sample.name, sample.labels.get("finished_reason")): sample.value
            for family in families
            for sample in family.samples
            if "le" not in sample.labels
        }
    assert samples["vllm:prompt_tokens_total", None] == 4
    assert samples["vllm:generation_tokens_total", None] == 5
    assert samples["vllm:num_requests_running", None] == 0
    assert samples["vllm:num_requests_waiting", None] == 0
    assert samples["vllm:kv_cache_usage_perc", None] == 0
    assert samples["vllm:time_to_first_token_seconds_count", None] == 1
    assert samples["vllm:inter_token_latency_seconds_count", None] == 4
    assert samples["vllm:e2e_request_latency_seconds_count", None] == 1
    assert samples["vllm:request_success_total", "length"] == 1
    assert samples["vllm:request_success_total", "stop"] == 0
    assert samples["mcp:baseline_bytes", None] == 123


def test_a_rejection_by_the_engine_is_a_400(serve: Serve, model_id: str) -> None:
    server = serve()

    def submit(request: Any) -> None:
        raise RequestRejected("Not this one.", param="prompt")

    server.engine.submit = submit
    status, answer, _ = post(server.url + "/v1/completions", {"model": model_id, "prompt": "x"})
    assert (status, answer["error"]["message"], answer["error"]["param"]) == (400, "Not this one.", "prompt")


def test_events_of_one_step_wake_the_event_loop_once(serve: Serve, model_id: str) -> None:
    server = serve(end=False, token_s=0.01)
    wakes: list[int] = []
    steps: list[int] = []
    inboxes, sink = server.service._inboxes, server.engine._sink
    sort = inboxes._sort
    inboxes._sort = lambda events: (wakes.append(len(events)), sort(events))
    server.engine._sink = lambda events: (steps.append(len(events)), sink(events))
    post(server.url + "/v1/completions", {"model": model_id, "prompt": "x", "n": 8, "max_tokens": 5})
    assert sum(wakes) == 40
    assert wakes == steps
    assert max(wakes) > 1
