"""The search on servers whose knee is planted: exact queues in no time, then a fake server over HTTP."""

from __future__ import annotations

import asyncio
import heapq
from itertools import islice

import pytest

from mcp_core import hardware
from mcp_core.errors import InputError, WorkloadError
from mcp_core.evaluation.arrivals import arrival_times
from mcp_core.evaluation.benchmark import unmeasured
from mcp_core.evaluation.capacity import Capacity, measure_capacity, requests_for
from mcp_core.evaluation.capacity_job import Served, search
from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw
from mcp_core.evaluation.metrics import summarize
from mcp_core.evaluation.saturation import over_saturation
from mcp_core.goal import Goal, Slo
from mcp_core.presets import bundled
from mcp_core.results import Failure, Run
from mcp_core.workload import Lengths, Workload

MACHINE = hardware.detect()
SLO = Slo.model_validate({"tpot_ms": {"p95": 20}})
CLOSED = Workload(requests=20, warmup_requests=0)
OPEN = Workload(requests=1000, warmup_requests=0, arrivals={"kind": "constant", "rate_s": 5})


class Planted:
    """Measures nothing: records follow from a law. ``asked`` is every load in turn."""

    def __init__(self, record, latency, failing=0.0):
        self.record, self.latency, self.failing = record, latency, failing
        self.asked, self.repeats, self.requests = [], [], []

    async def __call__(self, workload):
        self.asked.append(workload.load)
        self.repeats.append(workload.repeat)
        self.requests.append(workload.requests)
        records = [
            self.record(index, sent_ms=sent_ms, arrivals=arrivals)
            for index, (sent_ms, arrivals) in enumerate(self.latency(workload))
        ]
        share = self.failing if workload.load > 10 else self.failing / 4
        failure = Failure(kind="error", message="planted")
        records = [
            each.model_copy(update={"status": "failed", "failure": failure})
            if each.index < share * len(records)
            else each
            for each in records
        ]
        saturated = over_saturation(records) is not None if workload.is_open else None
        base = unmeasured(bundled(), workload, MACHINE, WorkloadError("x"))
        measurement = summarize(records, records[-1].sent_ms / 1e3 + 1, over_saturated=saturated)
        return base.model_copy(update={"status": "ok", "failure": None, "measurement": measurement}), records


def crowded(base_ms, each_ms):
    """TPOT of so much, and more for every other client."""

    def latency(workload):
        tpot_ms = base_ms + each_ms * (workload.concurrency - 1)
        return [(float(index), (10.0, 10.0 + tpot_ms, 10.0 + 2 * tpot_ms)) for index in range(workload.requests)]

    return latency


def queued(slots, service_s):
    """First come, first served by so many slots; their number over the time of one is all that they can do."""

    def latency(workload):
        free = [0.0] * slots
        for at_s in islice(arrival_times(workload), workload.requests):
            done_s = max(at_s, heapq.heappop(free)) + service_s
            heapq.heappush(free, done_s)
            yield at_s * 1e3, ((done_s - at_s) * 1e3, (done_s - at_s) * 1e3 + 1)

    return latency


def find(measure, workload=CLOSED, slo=SLO, **options) -> Capacity:
    return asyncio.run(measure_capacity(measure, workload, slo, **options))


@pytest.mark.parametrize(("each_ms", "best"), [(2.0, 8), (0.5, 31), (0.11, 137), (16.0, 1)])
@pytest.mark.parametrize("start", [1, 6, 200])
def test_clients_are_found_to_the_neighbour_or_within_five_percent(record, each_ms, best, start):
    planted = Planted(record, crowded(5, each_ms))
    found = find(planted, CLOSED.replace({"concurrency": start}))
    assert found.ended == "found"
    assert found.best <= best < found.broken_at
    assert found.broken_at - found.best <= max(1, 0.05 * found.best)
    assert [point.load for point in found.points] == planted.asked
    assert len(set(planted.asked)) == len(planted.asked) <= 14
    assert planted.repeats == list(range(len(planted.asked)))  # new prompts at each point
    assert all(point.meets == (point.load <= best) for point in found.points)
    assert all(point.broken == () or "p95 TPOT" in point.broken[0] for point in found.points)
    words = f"{found.best:g} users meet" if found.best > 1 else "1 user meets"
    assert found.in_words == f"{words} every limit, {found.broken_at:g} do not."


@pytest.mark.parametrize(("slots", "service_s", "start"), [(1, 0.05, 5), (4, 0.1, 300), (8, 0.4, 1.5)])
def test_a_rate_is_found_within_five_percent_of_the_knee(record, slots, service_s, start):
    knee = slots / service_s
    slo = Slo.model_validate({"ttft_ms": {"p99": 1.05 * service_s * 1e3}})
    found = find(Planted(record, queued(slots, service_s)), OPEN.replace({"arrivals.rate_s": start}), slo)
    assert found.kind == "rate_s"
    assert found.best == pytest.approx(knee, rel=0.05)
    assert found.broken_at == pytest.approx(knee, rel=0.06)
    assert found.best <= knee * 1.001


def test_a_growing_queue_breaks_a_load_that_its_slo_would_allow(record):
    slo = Slo.model_validate({"ttft_ms": {"p99": 1e6}})
    found = find(Planted(record, queued(2, 0.1)), OPEN, slo)
    assert found.best == pytest.approx(20, rel=0.1)
    assert {"the queue grew all the while"} == {each for point in found.points for each in point.broken}


def test_failures_break_a_load_too(record):
    found = find(Planted(record, crowded(5, 0.001), failing=0.02), failures_max=0.01, most=64)
    assert (found.best, found.broken_at) == (10, 11)
    assert "2.4% of requests failed > 1.0%" in next(point.broken[0] for point in found.points if not point.meets)


def test_nothing_is_said_beyond_what_was_measured(record):
    easy = find(Planted(record, crowded(5, 0.0)), most=24)
    assert (easy.best, easy.broken_at, easy.ended) == (24, None, "range")
    assert "nothing above was measured" in easy.in_words
    assert easy.ended_in_words == "There is no larger load to try."
    hard = find(Planted(record, crowded(50, 0.0)), CLOSED.replace({"concurrency": 4}))
    assert (hard.best, hard.broken_at, hard.ended) == (None, 1, "range")
    assert hard.in_words == "No load that was measured meets every limit, down to 1 user."
    assert hard.ended_in_words == "There is no smaller load to try."
    assert hard.limits[-1] == "failed requests ≤ 1 %"
    assert hard.limits[0].startswith("p95 TPOT ≤ ")


@pytest.mark.parametrize(
    ("best", "broken_at", "lies"),
    [(None, 4, "below what was measured"), (4, None, "above what was measured"), (4, 8, "between the two")],
)
def test_where_the_capacity_lies_when_the_time_was_up(best, broken_at, lies):
    found = Capacity(kind="concurrency", points=(), best=best, broken_at=broken_at, ended="budget", seconds=1)
    assert found.ended_in_words == f"The time was up: the capacity lies {lies}."


def test_a_point_has_the_requests_that_its_percentiles_need(record):
    planted = Planted(record, crowded(5, 2.0))
    find(planted)
    assert planted.requests == [210] * len(planted.asked)
    p90 = Slo.model_validate({"tpot_ms": {"p90": 20}})
    assert requests_for(p90, CLOSED) == 20
    assert requests_for(p90, CLOSED.replace({"concurrency": 9})) == 36
    assert requests_for(Slo.model_validate({"e2e_ms": {"p99": 20}}), CLOSED) == 1050


def test_a_burst_of_a_few_requests_is_no_rate_that_is_met(record):
    """Eight slots: 16 requests at once have a median within the limit, whatever the rate."""
    slo = Slo.model_validate({"ttft_ms": {"p50": 250}})
    found = find(Planted(record, queued(8, 0.1)), OPEN.replace({"requests": 16}), slo)
    assert found.ended == "found"
    assert found.best < 2 * 8 / 0.1
    assert requests_for(slo, OPEN.replace({"requests": 16})) == 53


def test_clients_are_whole_numbers(record):
    found = find(Planted(record, crowded(5, 0.0)), most=10.7)
    assert (found.best, found.ended) == (10, "range")
    assert {point.load for point in found.points} == {1, 2, 4, 8, 10}


def test_a_search_without_an_end_in_sight_is_refused(record):
    with pytest.raises(InputError, match="no latency limit"):
        find(Planted(record, crowded(5, 2)), slo=Slo())
    with pytest.raises(WorkloadError, match="ramp"):
        find(Planted(record, crowded(5, 2)), OPEN.replace({"arrivals.kind": "ramp", "arrivals.end_rate_s": 9}))


def test_too_few_requests_to_judge_by_are_no_answer(record):
    class Short(Planted):
        async def __call__(self, workload):
            return await super().__call__(workload.replace({"requests": 50}))

    with pytest.raises(WorkloadError, match="p95 TPOT not measured: it takes 200 requests"):
        find(Short(record, crowded(5, 2)))


def test_the_budget_ends_it_before_a_point_that_would_not_fit(record):
    class Slow(Planted):
        async def __call__(self, workload):
            await asyncio.sleep(0.05)
            return await super().__call__(workload)

    found = find(Slow(record, crowded(5, 0.001)), budget_s=0.18)
    assert found.ended == "budget"
    assert 2 <= len(found.points) <= 3
    assert found.best == found.points[-1].load
    assert found.broken_at is None


class Hanging(Planted):
    """From its so manieth point on it never comes to an end; as ``measure`` does, it then gives a cancelled Run."""

    def __init__(self, record, latency, at, *, swallows):
        super().__init__(record, latency)
        self.at, self.swallows = at, swallows

    async def __call__(self, workload):
        run, records = await super().__call__(workload)
        if len(self.asked) < self.at:
            return run, records
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if not self.swallows:
                raise
            asyncio.current_task().uncancel()
        return run.model_copy(update={"status": "cancelled"}), records


@pytest.mark.parametrize("swallows", [True, False])
def test_a_point_that_is_still_going_is_cut_when_the_time_is_up(record, swallows):
    none = find(Hanging(record, crowded(5, 2), 1, swallows=swallows), budget_s=0.1, cuts=True)
    assert (none.points, none.best, none.ended, none.cut) == ((), None, "budget", 1)
    assert none.in_words == "No load was measured to its end."
    assert none.ended_in_words.startswith("The time was up before a load of 1 ")
    assert none.seconds < 5
    some = find(Hanging(record, crowded(5, 2), 3, swallows=swallows), budget_s=0.1, cuts=True)
    assert ([point.load for point in some.points], some.best, some.cut) == ([1, 2], 2, 4)
    assert some.ended_in_words.endswith(": the capacity lies above what was measured.")


def test_cancelling_is_no_end_of_time(record):
    async def main():
        search = measure_capacity(
            Hanging(record, crowded(5, 2), 1, swallows=True), CLOSED, SLO, budget_s=60, cuts=True
        )
        task = asyncio.create_task(search)
        await asyncio.sleep(0.05)
        task.cancel()
        return await task

    assert asyncio.run(main()).ended == "cancelled"


def test_cancelling_keeps_the_points(record):
    async def main():
        planted, begun = Planted(record, crowded(5, 2)), asyncio.Event()

        async def slow_at_the_third(workload):
            if len(planted.asked) == 2:
                begun.set()
                await asyncio.sleep(60)
            return await planted(workload)

        task = asyncio.create_task(measure_capacity(slow_at_the_third, CLOSED, SLO))
        await begun.wait()
        task.cancel()
        return await task

    found = asyncio.run(main())
    assert found.ended == "cancelled"
    assert [point.load for point in found.points] == [1, 2]
    assert found.best == 2


def test_a_server_that_is_gone_ends_it(record):
    async def gone(workload):
        base = unmeasured(bundled(), workload, MACHINE, WorkloadError("x"))
        failure = Failure(kind="worker", message="The worker died.")
        return base.model_copy(update={"status": "failed", "failure": failure}), ()

    found = find(gone)
    assert (found.ended, found.best, found.points[0].broken) == ("failed", None, ("The worker died.",))


def test_progress_has_the_time_left_once_both_sides_are_known(record):
    seen = []
    find(Planted(record, crowded(5, 0.5)), on_progress=seen.append)
    assert seen[0].message == "point 1: 1 user"
    assert seen[0].fraction is None
    assert seen[-1].remaining_s is not None
    fractions = [each.fraction for each in seen if each.fraction is not None]
    assert fractions == sorted(fractions)


def served(url, state) -> Served:
    return Served(url, "token", None, bundled(), MACHINE)


def test_over_http_each_point_is_a_run(worker_state):
    """TPOT is 4 ms and 2 ms for every other client: 16 ms with 7 of them, the most that 17 ms allow."""
    kept, seen = [], []
    goal = Goal.model_validate({"slo": {"tpot_ms": {"p50": 17}}})
    workload = Workload(
        requests=12, concurrency=4, prompt_tokens=8, output_tokens=Lengths(min=12, max=12), warmup_requests=0
    )
    with FakeServer(LatencyLaw(ttft_ms=2, tpot_ms=4, crowd_ms=2), state=worker_state) as server:
        found = asyncio.run(
            search(
                served(server.url, worker_state),
                workload,
                goal,
                keep=lambda run, records, telemetry: kept.append((run, records, telemetry)),
                on_progress=seen.append,
            )
        )
    assert (found.best, found.broken_at) in ((7, 8), (6, 7), (8, 9))  # a busy machine may cost a client
    assert [run.id for run, _, _ in kept] == [point.run_id for point in found.points]
    assert all(isinstance(run, Run) and records and telemetry for run, records, telemetry in kept)
    assert {run.workload.concurrency for run, _, _ in kept} == {int(point.load) for point in found.points}
    assert "point 2: 8 users: measure, 32 of 32 requests" in {each.message for each in seen}
    assert Capacity.model_validate_json(found.model_dump_json()) == found


@pytest.mark.slow
def test_over_http_a_rate_is_found_within_five_percent(worker_state):
    knee = 40
    law = LatencyLaw(ttft_ms=4e3 / knee - 9, tpot_ms=1, slots=4)
    goal = Goal.model_validate({"slo": {"ttft_ms": {"p95": law.ttft_ms + 60}}})
    workload = Workload(
        requests=210,
        prompt_tokens=8,
        output_tokens=10,
        warmup_requests=0,
        arrivals={"kind": "constant", "rate_s": 25},
    )
    with FakeServer(law, state=worker_state) as server:
        found = asyncio.run(
            search(
                served(server.url, worker_state),
                workload,
                goal,
                keep=lambda *_: None,
                on_progress=lambda _: None,
            )
        )
    assert found.best == pytest.approx(knee, rel=0.05)
