"""The instrument on known quantities: a server whose latency law is planted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from mcp_core.errors import InputError
from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw
from mcp_core.evaluation.loadgen import run_load, run_warmup
from mcp_core.evaluation.metrics import summarize
from mcp_core.evaluation.prompts import text_prompts, token_prompts
from mcp_core.evaluation.saturation import over_saturation
from mcp_core.serving.client import Chunk, ServerClient, open_session
from mcp_core.workload import Chats, Lengths, Workload

SMALL = Workload(
    requests=12,
    concurrency=3,
    prompt_tokens=Lengths(min=4, max=30),
    output_tokens=Lengths(min=2, max=12),
    warmup_requests=2,
)


def load(server, workload=SMALL, *, on_progress=None, text=False, warm_up=False, exact=False):
    prompts = text_prompts(workload) if text else token_prompts(workload, 500, (0, 1))

    async def main():
        async with open_session() as session:
            client = ServerClient(server.url, None, session)
            run = run_warmup if warm_up else run_load
            return await run(client, workload, prompts, model="fake", on_progress=on_progress, exact=exact)

    return asyncio.run(main())


def test_planted_times_and_counts_come_back():
    with FakeServer(LatencyLaw(ttft_ms=60, tpot_ms=15), state={}) as server:
        result = load(server)
    measured = summarize(result.records, result.duration_s)
    assert (measured.completed, measured.failed, measured.cancelled) == (12, 0, 0)
    assert (measured.prompt_tokens, measured.output_tokens) == (
        server.stats.prompt_tokens,
        server.stats.output_tokens,
    )
    # Later than the law by what the shared machine adds, never earlier.
    assert 60 <= measured.ttft_ms.p50 < 90
    assert measured.tpot_ms.p50 == pytest.approx(15, rel=0.2)
    assert measured.itl_ms.p50 == pytest.approx(15, rel=0.2)
    for record in result.records:
        assert len(record.chunk_ms) == sum(record.chunk_tokens) == record.output_tokens
        assert record.e2e_ms == record.chunk_ms[-1]
        assert record.server_timing["decode_ms"] == pytest.approx((record.output_tokens - 1) * 15)


def test_concurrency_is_kept_and_never_exceeded():
    with FakeServer(LatencyLaw(ttft_ms=300, tpot_ms=5), state={}) as server:
        result = load(server, SMALL.replace({"requests": 6}))
    assert server.stats.most_running == 3
    assert [record.index for record in result.records] == list(range(6))
    sent = sorted(record.sent_ms for record in result.records)
    assert sent[2] < 250 < 300 < sent[3]  # three at once, the fourth after a reply


def test_our_server_gets_exact_lengths_and_a_foreign_one_standard_fields():
    with FakeServer(LatencyLaw(1, 1), state={}) as server:
        load(server)
    for body in server.stats.bodies:
        assert body["ignore_eos"] is True
        assert body["min_tokens"] == body["max_tokens"]
        assert body["temperature"] == 0
        assert body["stream"] is True
        assert all(isinstance(token, int) for token in body["prompt"])
    with FakeServer(LatencyLaw(1, 1)) as foreign:
        result = load(foreign, text=True)
    assert set(foreign.stats.bodies[0]) == {
        "model",
        "prompt",
        "max_tokens",
        "temperature",
        "stream",
        "stream_options",
    }
    assert isinstance(foreign.stats.bodies[0]["prompt"], str)
    assert sum(record.output_tokens for record in result.records) == foreign.stats.output_tokens
    assert all(record.status == "ok" for record in result.records)


@pytest.mark.parametrize(
    ("law", "failed"),
    [(LatencyLaw(5, 1, error_every=4), 3), (LatencyLaw(5, 1, break_every=3), 4)],
    ids=["refused", "broken-stream"],
)
def test_planted_failures_are_counted_and_never_measured(law, failed):
    with FakeServer(law, state={}) as server:
        result = load(server)
    measured = summarize(result.records, result.duration_s)
    assert (measured.completed, measured.failed) == (12 - failed, failed)
    assert measured.ttft_ms.n == measured.completed == server.stats.completed
    assert measured.output_tokens == server.stats.output_tokens
    assert server.stats.failed == failed
    assert {record.failure.message for record in result.records if record.failure} == {"A planted failure."}


def test_a_full_queue_is_a_failure_of_its_own_kind():
    with FakeServer(LatencyLaw(50, 1, queue_limit=2), state={}) as server:
        result = load(server)
    failures = [record.failure for record in result.records if record.failure]
    assert len(failures) == server.stats.refused > 0
    assert {failure.kind for failure in failures} == {"queue"}


def test_a_dead_server_fails_the_rest_at_once():
    many = SMALL.replace({"requests": 500, "timeout_s": 600})
    with FakeServer(LatencyLaw(5, 1, die_at=6), state={}) as server:
        begun = time.monotonic()
        result = load(server, many)
        took_s = time.monotonic() - begun
    measured = summarize(result.records, result.duration_s)
    assert took_s < 20
    assert server.stats.requests <= 6 + 3
    assert measured.completed == server.stats.completed <= 5
    assert measured.completed + measured.failed == 500
    assert result.death is not None
    assert result.death.kind == "worker"


def test_a_reply_that_takes_too_long_has_failed():
    slow = SMALL.replace({"requests": 2, "concurrency": 2, "timeout_s": 0.2})
    with FakeServer(LatencyLaw(ttft_ms=20, tpot_ms=5000), state={}) as server:
        result = load(server, slow)
    assert [record.status for record in result.records] == ["failed", "failed"]
    assert "0.2 s" in result.records[0].failure.message
    assert result.records[0].ttft_ms >= 20  # what came is kept
    assert result.records[0].e2e_ms is None
    assert result.death is None  # it answers, it is only slow
    assert not asyncio.all_tasks(server._loop)


def test_cancelling_keeps_what_was_measured():
    async def main(url):
        workload = SMALL.replace({"requests": 50, "concurrency": 2, "output_tokens": 12})
        two_each = asyncio.Event()

        def saw(progress):
            if progress.message.startswith("4 of"):
                two_each.set()

        async with open_session() as session:
            prompts, client = token_prompts(workload, 500, ()), ServerClient(url, None, session)
            task = asyncio.create_task(run_load(client, workload, prompts, model="fake", on_progress=saw))
            await asyncio.wait_for(two_each.wait(), 20)
            await asyncio.sleep(0.15)  # amid the third reply of both, which takes 310 ms
            task.cancel()
            result = await asyncio.wait_for(task, 5)
            await asyncio.sleep(0.2)  # the connections close
            return result, task

    with FakeServer(LatencyLaw(200, 10), state={}) as server:
        result, task = asyncio.run(main(server.url))
    statuses = [record.status for record in result.records]
    assert result.cancelled
    assert not task.cancelled()
    assert statuses.count("cancelled") == 2
    assert 0 < statuses.count("ok") == server.stats.completed < 50
    assert server.stats.running == 0


def test_an_error_of_our_own_stops_every_client():
    class Missing:
        count, note = None, ""

        def __init__(self, made):
            self.made = made

        def __call__(self, index):
            if index == 3:
                raise InputError("The text is gone.")
            return self.made(index)

    async def main(url):
        async with open_session() as session:
            prompts = Missing(token_prompts(SMALL, 500, ()))
            with pytest.raises(InputError, match="gone"):
                await run_load(ServerClient(url, None, session), SMALL, prompts, model="fake")
            sent = server.stats.requests
            await asyncio.sleep(0.5)
            return sent

    with FakeServer(LatencyLaw(20, 10), state={}) as server:
        sent = asyncio.run(main(server.url))
    assert server.stats.requests == sent == 3


def test_progress_counts_up_to_the_end():
    seen = []
    with FakeServer(LatencyLaw(5, 1), state={}) as server:
        load(server, on_progress=seen.append)
        load(server, on_progress=seen.append, warm_up=True)
    measure = [progress for progress in seen if progress.stage == "measure"]
    assert [round(progress.fraction * 12) for progress in measure] == list(range(13))
    assert measure[0].remaining_s is None
    assert measure[-1].remaining_s == 0
    assert measure[-1].message == "12 of 12 requests"
    assert [progress.message for progress in seen[-3:]] == [f"{n} of 2 requests" for n in range(3)]


def arriving(count=20, **arrivals):
    return SMALL.replace({"requests": count, "arrivals": {"kind": "constant", "rate_s": 20} | arrivals})


def test_arrivals_are_never_delayed_by_slow_replies():
    """Replies take 1.5 s, requests come every 50 ms: all are sent before the first reply ends."""
    with FakeServer(LatencyLaw(ttft_ms=1500, tpot_ms=1), state={}) as server:
        result = load(server, arriving())
    assert server.stats.most_running == 20
    assert [record.sent_ms for record in result.records] == pytest.approx([50 * n for n in range(20)], abs=40)
    for number, record in enumerate(result.records):
        assert record.late_ms == pytest.approx(record.sent_ms - 50 * number)
        assert record.late_ms >= 0
    measured = summarize(result.records, result.duration_s)
    assert measured.late_p99_ms < 40
    assert measured.mean_at_once == pytest.approx(20 * 1.5 / result.duration_s, rel=0.05)


def test_a_closed_loop_has_no_lateness_and_its_clients_in_flight():
    with FakeServer(LatencyLaw(ttft_ms=50, tpot_ms=5), state={}) as server:
        result = load(server)
    measured = summarize(result.records, result.duration_s)
    assert measured.late_p99_ms is None
    assert measured.mean_at_once == pytest.approx(3, rel=0.15)


def test_time_alone_ends_a_load_that_has_one():
    workload = SMALL.replace({"duration_s": 0.6, "requests": 1})
    with FakeServer(LatencyLaw(ttft_ms=50, tpot_ms=1), state={}) as server:
        closed = load(server, workload)
        opened = load(server, arriving(1).replace({"duration_s": 0.6}))
    assert 12 <= len(closed.records) <= 36
    assert max(record.sent_ms for record in closed.records) < 650
    assert len(opened.records) == 12
    assert {record.status for record in (*closed.records, *opened.records)} == {"ok"}


def test_a_server_that_dies_ends_a_load_by_time():
    with FakeServer(LatencyLaw(5, 1, die_at=6), state={}) as server:
        begun = time.monotonic()
        result = load(server, arriving().replace({"duration_s": 60}))
    assert time.monotonic() - begun < 20
    assert result.death is not None


def test_turns_of_a_chat_send_what_was_said_and_wait_to_think():
    workload = SMALL.replace({"requests": 9, "concurrency": 2}).model_copy(
        update={"chats": Chats(turns=Lengths(min=3, max=3), think_s=0.2, think="fixed")}
    )
    with FakeServer(LatencyLaw(20, 2), state={}) as server:
        result = load(server, workload)
    by_prompt = {len(body["prompt"]): body["prompt"] for body in server.stats.bodies}
    for first in (0, 3, 6):
        chat = result.records[first : first + 3]
        for before, after in pairwise(chat):
            held = before.prompt_tokens + before.output_tokens
            assert after.shared_tokens == held
            assert by_prompt[after.prompt_tokens][: before.prompt_tokens] == by_prompt[before.prompt_tokens]
            reply = by_prompt[after.prompt_tokens][before.prompt_tokens : held]
            assert reply == list(range(before.output_tokens))  # the ids that the fake gives
            assert after.sent_ms - (before.sent_ms + before.e2e_ms) == pytest.approx(200, abs=60)
    assert server.stats.most_running <= 2


def test_reasoning_and_answer_have_first_tokens_of_their_own():
    workload = SMALL.replace({"prompts.as_chat": True, "output_tokens": 10})
    with FakeServer(LatencyLaw(40, 10, reasoning=6), state={}) as server:
        result = load(server, workload, text=True)
        plain = load(server, SMALL)
    measured = summarize(result.records, result.duration_s)
    assert measured.ttft_ms.p50 == pytest.approx(40, abs=15)
    assert measured.first_answer_ms.p50 == pytest.approx(40 + 6 * 10, abs=25)
    assert measured.tpot_ms.p50 == pytest.approx(10, rel=0.2)  # tokens of both
    assert summarize(plain.records, plain.duration_s).first_answer_ms is None
    assert [set(body) >= {"messages"} for body in server.stats.bodies[:12]] == [True] * 12


def test_text_for_our_own_worker_asks_for_exact_lengths():
    with FakeServer(LatencyLaw(1, 1), state={}) as server:
        load(server, text=True, exact=True)
    assert all(body["ignore_eos"] and body["min_tokens"] == body["max_tokens"] for body in server.stats.bodies)


def test_a_queue_that_grows_is_told_from_one_that_does_not():
    """Two slots of 50 ms each serve 40 requests a second, and no more."""
    law = LatencyLaw(ttft_ms=41, tpot_ms=1, slots=2)
    paced = {"output_tokens": 10}
    with FakeServer(law, state={}) as server:
        slow = load(server, arriving(40, kind="poisson", rate_s=20).replace(paced))
        fast = load(server, arriving(60, rate_s=80).replace(paced))
    assert over_saturation(slow.records) is None
    assert "the queue grew all the while" in over_saturation(fast.records)


class Blocking:
    """A client that holds the loop for 50 ms now and then, as a slow load generator would."""

    async def stream(self, path, body):
        for _ in range(4):
            await asyncio.sleep(0.01)
            time.sleep(0.05)  # noqa: ASYNC251 - the point of it
            yield Chunk(time.perf_counter(), "x", (1,))


def test_the_generators_own_lateness_is_seen():
    workload = SMALL.replace({"requests": 4, "concurrency": 1})
    result = asyncio.run(run_load(Blocking(), workload, token_prompts(workload, 500, ()), model="fake"))
    assert result.lag_p99_ms > 30


class Recording(ServerClient):
    """Keeps, for every chunk, how long after the server's stamp it was received, ms."""

    delays_ms: list[float]

    async def stream(self, path, body):
        async for chunk in super().stream(path, body):
            if chunk.has_token:
                self.delays_ms.append((chunk.received_s - float(chunk.text)) * 1e3)
            yield chunk


def receive_delays(workload):
    """Sorted delays of every chunk of a server in a process of its own, and the result."""
    command = [sys.executable, "-m", "mcp_core.evaluation.fake_server", "--ttft-ms", "20", "--tpot-ms", "20"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()

        async def main():
            async with open_session() as session:
                client = Recording(url, None, session)
                client.delays_ms = []
                result = await run_load(client, workload, token_prompts(workload, 500, ()), model="fake")
                return client.delays_ms, result

        delays_ms, result = asyncio.run(main())
        process.stdin.close()
    return sorted(delays_ms), result


def test_receive_times_follow_the_servers_stamps():
    workload = SMALL.replace({"requests": 60, "arrivals": {"kind": "poisson", "rate_s": 60}})
    delays_ms, result = receive_delays(workload)
    assert len(delays_ms) == sum(record.output_tokens for record in result.records)
    assert delays_ms[0] > 0  # nothing is received before it was sent: one clock
    assert delays_ms[len(delays_ms) // 4] < 1.0  # others on this machine only ever add


@pytest.mark.slow
def test_receive_times_are_within_a_millisecond_of_the_stamps():
    """One stream, quiet machine. Streams that tick together wait for each other: about 2 ms at 16 of them."""
    workload = SMALL.replace({"requests": 20, "concurrency": 1, "output_tokens.min": 64, "output_tokens.max": 64})
    delays_ms, result = receive_delays(workload)
    assert delays_ms[int(0.99 * len(delays_ms))] < 1.0
    assert result.lag_p99_ms < 2.0
    measured = summarize(result.records, result.duration_s)
    assert measured.tpot_ms.p50 == pytest.approx(20, rel=0.01)
