from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mcp_core.errors import QueueFull
from mcp_core.generation import GenerationRequest, TokenEvent
from mcp_core.serving.fake_engine import EOS, FakeEngine, FakeModel
from mcp_core.serving.text import encode


class Recorder:
    def __init__(self) -> None:
        self.steps: list[list[TokenEvent]] = []
        self.changed = threading.Condition()

    def __call__(self, events: list[TokenEvent]) -> None:
        with self.changed:
            self.steps.append(events)
            self.changed.notify_all()

    def of(self, request_id: str) -> list[TokenEvent]:
        return [event for step in self.steps for event in step if event.request_id == request_id]

    def wait_end(self, request_id: str) -> list[TokenEvent]:
        with self.changed:
            assert self.changed.wait_for(lambda: any(event.finish for event in self.of(request_id)), 20)
        return self.of(request_id)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def make(recorder: Recorder) -> Iterator[Callable[..., FakeEngine]]:
    engines: list[FakeEngine] = []

    def start(**options: object) -> FakeEngine:
        engine = FakeEngine(recorder, **{"script": (1, 2, 3, EOS), **options})  # type: ignore[arg-type]
        engines.append(engine)
        engine.start()
        return engine

    yield start
    for engine in engines:
        engine.close()


def tokens(events: list[TokenEvent]) -> list[int | None]:
    return [event.token for event in events]


def test_the_script_is_what_comes_out_and_eos_ends_it(make: Callable[..., FakeEngine], recorder: Recorder) -> None:
    make().submit(GenerationRequest("a", (5, 6), 10))
    events = recorder.wait_end("a")
    assert tokens(events) == [1, 2, 3, EOS]
    assert [event.finish for event in events] == [None, None, None, "stop"]
    assert events[-1].timing is not None
    assert set(events[-1].timing) == {"queue_ms", "prefill_ms", "decode_ms"}


def test_lengths_are_kept_as_asked(make: Callable[..., FakeEngine], recorder: Recorder) -> None:
    engine = make()
    engine.submit(GenerationRequest("short", (5,), 2))
    engine.submit(GenerationRequest("long", (5,), 9, ignore_eos=True))
    engine.submit(GenerationRequest("least", (5,), 20, min_tokens=5))
    assert [event.finish for event in recorder.wait_end("short")] == [None, "length"]
    assert tokens(recorder.wait_end("long")) == [1, 2, 3, EOS, 1, 2, 3, EOS, 1]
    assert tokens(recorder.wait_end("least")) == [1, 2, 3, EOS, 1, 2, 3, EOS]


def test_requests_share_a_step(make: Callable[..., FakeEngine], recorder: Recorder) -> None:
    engine = make(token_s=0.02)
    for name in "ab":
        engine.submit(GenerationRequest(name, (5,), 3))
    for name in "ab":
        recorder.wait_end(name)
    assert {len(step) for step in recorder.steps} == {2}


def test_the_pace_is_absolute(make: Callable[..., FakeEngine], recorder: Recorder) -> None:
    make(token_s=0.004).submit(GenerationRequest("a", (5,), 100, ignore_eos=True))
    events = recorder.wait_end("a")
    assert 0.396 - 0.002 < events[-1].at_s - events[0].at_s < 2


def test_without_catching_up_a_step_waits_for_the_hand_off() -> None:
    ended, at_s = threading.Event(), []

    def slow(events: list[TokenEvent]) -> None:
        at_s.append(events[0].at_s)
        time.sleep(0.01)
        if events[0].finish:
            ended.set()

    engine = FakeEngine(slow, script=(1,), token_s=0.01, catches_up=False)
    engine.start()
    engine.submit(GenerationRequest("a", (5,), 11))
    assert ended.wait(20)
    engine.close()
    assert at_s[-1] - at_s[0] > 10 * 0.02 - 0.002


def test_a_cancelled_request_ends_so_and_is_counted(make: Callable[..., FakeEngine], recorder: Recorder) -> None:
    engine = make(token_s=0.002)
    engine.submit(GenerationRequest("a", (5,), 10_000, ignore_eos=True))
    while not recorder.of("a"):
        time.sleep(0.002)
    assert engine.stats().running == 1
    engine.cancel("a")
    engine.cancel("unknown")
    assert recorder.wait_end("a")[-1].finish == "cancelled"
    stats = engine.stats()
    assert (stats.running, stats.cancelled_total, stats.output_tokens_total) == (0, 1, len(recorder.of("a")) - 1)


def test_an_error_comes_where_it_was_asked_for(make: Callable[..., FakeEngine], recorder: Recorder) -> None:
    make(fail_at=2).submit(GenerationRequest("a", (5,), 10))
    last = recorder.wait_end("a")[-1]
    assert (tokens(recorder.of("a")), last.finish) == ([1, 2, None], "error")
    assert last.failure is not None
    assert last.failure.kind == "oom"


def test_a_full_queue_and_a_draining_engine_refuse(make: Callable[..., FakeEngine], recorder: Recorder) -> None:
    engine = make(token_s=0.01, max_requests=1)
    engine.submit(GenerationRequest("a", (5,), 4))
    with pytest.raises(QueueFull, match="full"):
        engine.submit(GenerationRequest("b", (5,), 4))
    assert engine.drain(10)
    with pytest.raises(QueueFull):
        engine.submit(GenerationRequest("c", (5,), 4))


def test_logprobs_are_known_numbers(make: Callable[..., FakeEngine], recorder: Recorder) -> None:
    make().submit(GenerationRequest("a", (5, 6), 0, logprobs=1, prompt_logprobs=1))
    (only,) = recorder.wait_end("a")
    assert only.token is None
    assert only.prompt_logprobs is not None
    assert [logprob.logprob for logprob in only.prompt_logprobs] == [None, -0.5]
    assert only.prompt_logprobs[1].top == ((6, -0.5),)


def test_the_tokenizer_has_one_token_a_byte() -> None:
    assert len(encode(FakeModel().tokenizer, "a€", add_special_tokens=True)) == 4


def test_neither_the_fake_nor_the_api_needs_torch() -> None:
    code = (
        "import sys, mcp_core.serving.fake_engine, mcp_core.serving.api, mcp_core.serving.control\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert printed.strip() == "set()"
