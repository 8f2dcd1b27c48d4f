from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from mcp_core import devices
from mcp_core.crowd import CrowdPlan
from mcp_core.errors import Busy, DoesNotFit, InputError, McpError, ModelNotFound, RecipeError, WorkerDied
from mcp_core.generation import Sampling
from mcp_core.model_lookups import KEPT_S, ModelLookups
from mcp_core.models.prepared import PreparedModel
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.serving import admission
from mcp_core.views import ConversationView, JobView, WorkerView
from mcp_core.workbench import Workbench
from mcp_core.workload import short_chat

T = TypeVar("T")

STAND_IN = Path(__file__).parent / "stand_in_worker.py"
RECIPE = Recipe(dtype="fp32", device="cpu", threads=1)
GREEDY = Sampling(temperature=0.0)

# The real job child with a bench that measures nothing and stores what it was asked.
BENCH = """
import asyncio, sys
from datetime import UTC, datetime
from mcp_core import jobs
from mcp_core.decision.store import Store
from mcp_core.hardware import detect
from mcp_core.jobs import Outcome
from mcp_core.recipe import Recipe
from mcp_core.results import Run
from mcp_core.serving.client import ServerClient
from mcp_core.workload import Workload

async def bench(job):
    async with ServerClient(job.request["worker_url"], job.secrets["token"]) as client:
        state = await client.state()
    workload = Workload.from_dict(job.request["workload"])
    if workload.name == "slow":
        await asyncio.sleep(60)
    recipe = Recipe.from_dict(state["recipe"])
    run = Run(
        id="run-1", created=datetime.now(UTC), recipe=recipe, workload=workload, hardware=detect(), status="ok"
    )
    with Store(job.secrets["store_url"]) as store:
        store.add(run)
    return Outcome("done", None, run.model_dump(mode="json"))

jobs.VERBS["bench"] = "__main__:bench"
sys.exit(jobs.main(sys.argv[1:]))
"""

Start = Callable[..., Workbench]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts Workbenches over stand-in workers with the given flags; whatever Recipe is asked is admitted."""
    opened: list[Workbench] = []
    monkeypatch.setattr(admission, "admit", lambda recipe, **_: recipe)

    def open_one(*flags: str, store_url: str | None = None) -> Workbench:
        bench = Workbench(
            store_url,
            worker_command=(sys.executable, str(STAND_IN), *flags),
            job_command=(sys.executable, "-c", BENCH),
        )
        opened.append(bench)
        return bench

    yield open_one
    for bench in opened:
        bench.close()


def until(read: Callable[[], T], done: Callable[[T], Any] = bool, seconds: float = 20.0) -> T:
    """What ``read`` gives once ``done`` holds for it."""
    end = time.monotonic() + seconds
    while not done(value := read()):
        assert time.monotonic() < end, f"waited in vain: {value}"
        time.sleep(0.02)
    return value


def ready(bench: Workbench, recipe: Recipe = RECIPE) -> str:
    worker_id = bench.load(recipe)
    view = until(lambda: bench.worker(worker_id), lambda view: view and view.state != "starting")
    assert view is not None
    assert view.state == "ready", view.failure
    return worker_id


def settled(bench: Workbench, cid: str) -> ConversationView:
    view = until(lambda: bench.conversation(cid), lambda view: view and not view.streaming)
    assert view is not None
    return view


def job_in(bench: Workbench, job_id: str, *states: str) -> JobView:
    view = until(lambda: bench.job(job_id), lambda view: view and view.state in states)
    assert view is not None
    return view


def test_load_chat_watch_and_unload(start: Start) -> None:
    bench = start()
    worker_id = bench.load(RECIPE)
    first = bench.worker(worker_id)
    assert first is not None
    assert first.state == "starting"
    assert first.progress is not None
    assert first.predicted is not None
    assert first.predicted.load_peak_bytes > first.predicted.weights_bytes > 0
    view = until(lambda: bench.worker(worker_id), lambda view: view and view.state == "ready")
    assert view is not None
    assert (view.title, view.device, view.max_context, view.load_s) == ("Stand-in", "cpu", 10_000, 0.1)
    assert view.effective is not None
    assert view.effective.dtype == "fp32"
    assert (view.users, view.progress) == (0, None)
    assert view.predicted == first.predicted

    cid = bench.new_conversation(worker_id, "Be brief.")
    bench.send(cid, "count", GREEDY, 5)
    chat = settled(bench, cid)
    assert [message.content for message in chat.messages] == ["Be brief.", "count", "w0 w1 w2 w3 w4 "]
    stats = chat.messages[-1].stats
    assert stats is not None
    assert (stats.prompt_tokens, stats.output_tokens) == (3, 5)
    assert stats.ttft_ms is not None
    assert stats.e2e_ms is not None
    assert 0 < stats.ttft_ms < stats.e2e_ms < 20_000
    assert chat.max_context == 10_000

    seen = until(lambda: bench.stats(worker_id), lambda stats: stats and stats.output_tokens_total == 5)
    assert seen is not None
    assert seen.finished_total == 1
    view = until(
        lambda: bench.worker(worker_id),
        lambda view: view and view.memory and view.memory.process_peak_bytes,
    )
    assert view is not None
    assert view.users == 1
    samples = until(lambda: bench.telemetry(60), lambda samples: samples and samples[-1].workers)
    assert samples[-1].workers[0].worker_id == worker_id
    assert samples[-1].workers[0].resident_bytes

    bench.unload(worker_id)
    until(lambda: bench.workers() == ())
    assert view.pid is not None
    assert devices.process_started_s(view.pid) is None
    assert bench.stats(worker_id) is None
    with pytest.raises(WorkerDied, match="no longer loaded"):
        bench.send(cid, "still there?", GREEDY, 5)


def test_checks_come_before_anything_is_started(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(recipe: Recipe, **_: Any) -> Recipe:
        assert threading.current_thread() is threading.main_thread()
        raise DoesNotFit("Needs 900 GB.", "Force it.")

    monkeypatch.setattr(admission, "admit", refuse)
    bench = start()
    with pytest.raises(DoesNotFit):
        bench.load(RECIPE)
    assert bench.workers() == ()


def test_a_failed_load_is_shown_until_dismissed(start: Start) -> None:
    bench = start("--fail", "disk")
    worker_id = bench.load(RECIPE)
    view = until(lambda: bench.worker(worker_id), lambda view: view and view.state == "failed")
    assert view is not None
    assert view.failure is not None
    assert (view.failure.kind, view.failure.hint) == ("disk", "try less")
    assert view.log_tail
    with pytest.raises(WorkerDied, match="no luck"):
        bench.new_conversation(worker_id)
    bench.dismiss(worker_id)
    assert bench.workers() == ()
    bench.dismiss(worker_id)


def test_a_load_is_cancelled(start: Start) -> None:
    bench = start("--hang")
    worker_id = bench.load(RECIPE)
    view = until(lambda: bench.worker(worker_id), lambda view: view and view.pid)
    assert view is not None
    with pytest.raises(Busy, match="still loading"):
        bench.new_conversation(worker_id)
    bench.dismiss(worker_id)
    assert len(bench.workers()) == 1
    bench.cancel_load(worker_id)
    until(lambda: bench.workers() == ())
    assert view.pid is not None
    assert devices.process_started_s(view.pid) is None


def test_a_worker_killed_in_the_middle_of_a_reply(start: Start) -> None:
    bench = start("--die-after", "4")
    worker_id = ready(bench)
    cid = bench.new_conversation(worker_id)
    bench.send(cid, "count", GREEDY, 50)
    answer = settled(bench, cid).messages[-1]
    assert answer.content.startswith("w0 w1 w2 ")
    assert answer.finish_reason == "error"
    assert answer.failure is not None
    assert "SIGKILL" in answer.failure.message
    assert answer.failure.hint
    view = until(lambda: bench.worker(worker_id), lambda view: view and view.state == "died")
    assert view is not None
    assert view.failure == answer.failure
    other = ready(bench)
    bench.use_worker(cid, other)
    assert bench.conversation(cid) is not None


def test_stop_regenerate_edit_and_clear(start: Start) -> None:
    bench = start("--delay", "0.02")
    worker_id = ready(bench)
    cid = bench.new_conversation(worker_id)
    bench.send(cid, "count", GREEDY, 500)
    until(lambda: bench.conversation(cid), lambda view: view and len(view.trace) > 2)
    bench.stop(cid)
    view = bench.conversation(cid)
    assert view is not None
    assert (view.streaming, view.messages[-1].finish_reason) == (False, "cancelled")
    until(lambda: bench.stats(worker_id), lambda stats: stats and stats.cancelled_total == 1)
    bench.regenerate(cid, GREEDY, 2)
    assert settled(bench, cid).messages[-1].content == "w0 w1 "
    bench.edit(cid, 0, "again", GREEDY, 3)
    assert [message.content for message in settled(bench, cid).messages] == ["again", "w0 w1 w2 "]
    bench.set_system(cid, "Hello.")
    bench.clear(cid)
    view = bench.conversation(cid)
    assert view is not None
    assert [message.content for message in view.messages] == ["Hello."]


def test_a_batch_of_more_prompts_than_the_worker_holds(start: Start) -> None:
    bench = start("--queue", "2")
    worker_id = ready(bench, RECIPE.replace({"batching.max_requests": 3}))
    bid = bench.start_batch(worker_id, ["a", "b", "c", "d", "e"], GREEDY, 3)
    items = until(lambda: bench.batch(bid), lambda items: all(item.state == "ok" for item in items))
    assert [item.text for item in items] == ["w0 w1 w2 "] * 5
    endless = bench.start_batch(worker_id, ["x"], GREEDY, 100_000)
    bench.stop_batch(endless)
    assert bench.batch(endless)[0].state == "cancelled"


def test_two_workers_race_and_chats_wait_meanwhile(start: Start) -> None:
    bench = start("--delay", "0.01")
    ids = [ready(bench), ready(bench, RECIPE.replace({"prefix_cache": True}))]
    race_id = bench.demos.start_race(ids, "hello there", GREEDY, 20)
    cid = None
    with pytest.raises(Busy, match="a race between"):
        cid = bench.new_conversation(ids[0])
    assert cid is None
    race = until(lambda: bench.demos.race(race_id), lambda race: race and not race.running)
    assert race is not None
    assert [lane.state for lane in race.lanes] == ["ok", "ok"]
    assert "".join(race.lanes[0].pieces) == "".join(f"w{index} " for index in range(20))
    assert [lane.recipe.prefix_cache for lane in race.lanes] == [False, True]
    cid = bench.new_conversation(ids[0])
    bench.send(cid, "x", GREEDY, 100_000)
    with pytest.raises(Busy, match="at work"):
        bench.demos.start_race(ids, "hello", GREEDY, 20)
    bench.stop(cid)


def test_a_crowd_is_a_job_and_the_worker_is_looked_at_after_it(start: Start) -> None:
    bench = start()
    worker_id = ready(bench)
    plan = CrowdPlan(users=2, prompt_tokens=4, output_tokens=4, modes=("continuous",))
    with pytest.raises(InputError, match="65 users"):
        bench.demos.start_crowd(worker_id, plan.model_copy(update={"users": 65}))
    job_id = bench.demos.start_crowd(worker_id, plan)
    job = job_in(bench, job_id, "done", "failed")
    assert job.verb == "crowd"
    # The stand-in has no route to hold it: the job failed after it had changed the mode, and changed it back.
    assert job.failure is not None
    assert bench.demos.crowd(job_id) is None
    view = bench.worker(worker_id)
    assert view is not None
    assert view.recipe.batching.mode == "off"


def test_live_fields_change_and_others_are_named(start: Start) -> None:
    bench = start()
    worker_id = ready(bench)
    bench.apply_live(worker_id, RECIPE.replace({"batching.max_requests": 7}))
    view = bench.worker(worker_id)
    assert view is not None
    assert view.recipe.batching.max_requests == 7
    with pytest.raises(RecipeError, match="dtype"):
        bench.apply_live(worker_id, RECIPE.replace({"dtype": "bf16"}))
    with pytest.raises(RecipeError, match="compile"):
        bench.apply_live(worker_id, RECIPE.replace({"compile": "graphs"}))


def test_a_bench_leaves_a_run_that_survives_a_restart(start: Start, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'elsewhere.sqlite'}"
    bench = start(store_url=url)
    worker_id = ready(bench)
    assert bench.runs() == ()
    job_id = bench.start_bench(worker_id, short_chat())
    view = job_in(bench, job_id, "done", "failed")
    assert view.failure is None
    assert (view.worker_id, view.workload, view.title) == (worker_id, short_chat(), "short-chat on Stand-in")
    assert view.run is not None
    assert view.run == bench.run("run-1")
    assert bench.records("run-1") == ()
    bench.close()
    again = start(store_url=url)
    assert [job.id for job in again.jobs()] == [job_id]
    (stored,) = again.runs()
    assert stored.id == "run-1"
    again.delete_run("run-1")
    assert again.runs() == ()
    assert again.run("run-1") is None


def test_while_a_device_is_measured_others_wait(start: Start) -> None:
    bench = start("--delay", "0.05")
    worker_id, other = ready(bench), ready(bench)
    cid = bench.new_conversation(worker_id)
    bench.send(cid, "count", GREEDY, 1000)
    with pytest.raises(Busy, match="at work"):
        bench.start_bench(other, short_chat())
    bench.stop(cid)
    slow = short_chat().replace({"name": "slow"})
    job_id = bench.start_bench(worker_id, slow)
    job_in(bench, job_id, "running")
    with pytest.raises(Busy, match="measured already"):
        bench.start_bench(worker_id, slow)
    for disturb in (
        lambda: bench.send(cid, "hi", GREEDY, 5),
        lambda: bench.start_batch(other, ["hi"], GREEDY, 5),
        lambda: bench.apply_live(worker_id, RECIPE),
        lambda: bench.load(RECIPE),
    ):
        with pytest.raises(Busy, match="slow on Stand-in"):
            disturb()
    waiting = bench.start_bench(other, short_chat())
    assert job_in(bench, waiting, "queued").progress is not None
    bench.cancel_job(job_id)
    assert job_in(bench, job_id, "cancelled").run is None
    (lost,) = until(lambda: [run for run in bench.runs() if run.workload == slow])
    assert (lost.status, lost.recipe, lost.workload, lost.measurement) == ("cancelled", RECIPE, slow, None)
    assert job_in(bench, waiting, "done").run is not None
    bench.send(cid, "hi", GREEDY, 1)
    settled(bench, cid)


def test_many_threads_at_once(start: Start) -> None:
    bench = start("--delay", "0.001")
    worker_id = ready(bench)
    texts: list[str] = []

    def visit() -> None:
        cid = bench.new_conversation(worker_id)
        bench.send(cid, "count", GREEDY, 20)
        texts.append(settled(bench, cid).messages[-1].content)

    threads = [threading.Thread(target=visit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["".join(f"w{index} " for index in range(20))] * 8
    view = bench.worker(worker_id)
    assert view is not None
    assert view.users == 8


def test_a_second_app_is_seen(start: Start) -> None:
    first = start()
    assert first.other_apps() == ()
    second = start()
    assert len(first.other_apps()) == len(second.other_apps()) == 1
    second.close()
    second.close()
    assert first.other_apps() == ()


def test_a_model_in_use_is_not_deleted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from mcp_core.models import prepared

    sha256 = "a" * 64
    kept = PreparedModel(sha256, "One", Path("/x"), 5, datetime.now(UTC), "prepared")
    deleted: list[str] = []
    monkeypatch.setattr(prepared, "list_models", lambda: (kept,))
    monkeypatch.setattr(prepared, "delete", deleted.append)
    bench = start()
    hub = RECIPE.replace({"model": {"source": "hub", "id": "owner/name"}})
    worker_ids = [ready(bench, RECIPE.replace({"model.sha256": sha256})), ready(bench, hub)]
    assert bench.prepared_models() == (kept,)
    for model_id in (sha256, "hub:owner/name"):
        with pytest.raises(Busy, match="Stand-in is loaded from it"):
            bench.delete_model(model_id)
    for worker_id in worker_ids:
        bench.unload(worker_id)
    until(lambda: bench.workers() == ())
    bench.delete_model(sha256)
    assert deleted == [sha256]


def test_closing_ends_everything(start: Start) -> None:
    bench = start("--delay", "0.05")
    worker_id = ready(bench)
    cid = bench.new_conversation(worker_id)
    bench.send(cid, "count", GREEDY, 1000)
    bench.start_batch(worker_id, ["a", "b"], GREEDY, 1000)
    bench.load(RECIPE)
    pids = [view.pid for view in until(bench.workers, lambda views: all(view.pid for view in views))]
    bench.close()
    assert [devices.process_started_s(pid) for pid in pids if pid] == [None, None]
    assert devices.holders("cpu") == devices.app_instances() == ()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mcp-")]


def test_the_machine_and_the_store_are_there_without_a_worker(start: Start) -> None:
    bench = start()
    assert bench.hardware().devices[0].id == "cpu"
    assert (bench.runs(), bench.jobs(), bench.workers()) == ((), (), ())
    assert bench.conversation("nope") is None
    assert bench.job("nope") is None
    assert bench.worker("nope") is None
    bench.unload("nope")
    bench.cancel_job("nope")
    with pytest.raises(WorkerDied):
        bench.start_bench("nope", short_chat())
    with pytest.raises(ModelNotFound):
        bench.stop("nope")


def test_lookups_from_the_hub_are_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    from mcp_core.models import catalog

    asked: list[tuple[str, str | None]] = []

    def resolve(ref: ModelRef, *, hub_token: str | None = None) -> Any:
        asked.append((ref.id, hub_token))
        if ref.id == "no/network":
            raise McpError("no network", "")
        return object()

    monkeypatch.setattr(catalog, "resolve", resolve)
    time_s = [0.0]
    lookups = ModelLookups(lambda: time_s[0])
    hub, local = ModelRef(source="hub", id="owner/name"), ModelRef()
    assert lookups.resolve(hub) is lookups.resolve(hub)
    assert lookups.resolve(hub, "token") is not lookups.resolve(hub)
    assert lookups.resolve(local) is not lookups.resolve(local)
    assert asked == [("owner/name", None), ("owner/name", "token"), (local.id, None), (local.id, None)]
    time_s[0] = KEPT_S + 1
    lookups.resolve(hub)
    lookups.forget()
    lookups.resolve(hub)
    assert len(asked) == 6
    for _ in range(2):
        with pytest.raises(McpError):
            lookups.resolve(ModelRef(source="hub", id="no/network"))
    assert len(asked) == 8


def test_importing_it_is_light() -> None:
    heavy = {"torch", "transformers", "pandas", "plotly", "numpy", "streamlit", "sqlalchemy", "aiohttp", "fastapi"}
    code = f"import sys, mcp_core.workbench; print(*({heavy!r} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == []


def test_views_are_values(start: Start) -> None:
    bench = start()
    worker_id = ready(bench)
    before = bench.worker(worker_id)
    bench.unload(worker_id)
    until(lambda: bench.workers() == ())
    assert isinstance(before, WorkerView)
    assert before.state == "ready"
