from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mcp_core import devices
from mcp_core.errors import Busy, DoesNotFit, McpError, OutOfMemory, RecipeError, WorkerDied, error_from
from mcp_core.recipe import Recipe
from mcp_core.serving import admission, supervisor
from mcp_core.serving.supervisor import Supervisor, Worker
from mcp_core.views import Progress

STAND_IN = Path(__file__).parents[1] / "stand_in_worker.py"
RECIPE = Recipe(dtype="fp32", device="cpu", threads=1)


def command(*flags: str) -> tuple[str, ...]:
    return (sys.executable, str(STAND_IN), *flags)


def supervised(use: Callable[[Supervisor], Awaitable[Any]], *flags: str) -> Any:
    """What ``use`` returns for a Supervisor of stand-ins with these flags; closed afterwards."""

    async def run() -> Any:
        it = Supervisor(command(*flags))
        try:
            return await use(it)
        finally:
            await it.close()

    return asyncio.run(run())


async def ready(it: Supervisor, **options: Any) -> Worker:
    worker = it.launch(RECIPE, **options)
    await worker.settled.wait()
    assert worker.status == "ready", worker.failure
    return worker


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    return devices.process_started_s(pid) is None


def test_a_worker_becomes_ready_answers_and_ends() -> None:
    async def use(it: Supervisor) -> None:
        seen: list[Progress] = []
        worker = await ready(it, on_progress=seen.append)
        assert [(each.stage, each.fraction) for each in seen] == [("load", 0.25), ("load", 0.5)]
        assert seen[1].remaining_s is not None
        assert seen[1].elapsed_s > 0
        assert worker.title == "Stand-in"
        assert worker.recipe == RECIPE
        assert worker.client is not None
        assert (await worker.client.stats()).running == 0
        pid = worker.pid
        assert pid is not None
        await it.stop(worker.id)
        assert (worker.status, worker.failure) == ("stopped", None)
        assert gone(pid)
        it.forget(worker.id)
        assert it.workers == {}

    supervised(use)


def test_the_worker_has_its_own_group_its_threads_and_no_secret_that_others_can_read() -> None:
    async def use(it: Supervisor) -> None:
        worker = await ready(it, hub_token="hf_very_secret")
        assert worker.pid is not None
        process = psutil.Process(worker.pid)
        assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)
        environment, arguments = process.environ(), process.cmdline()
        assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "1"
        assert environment["TOKENIZERS_PARALLELISM"] == "false"
        shown = [*environment.values(), *arguments, *worker.log_tail, worker.log.path.read_text(), repr(worker)]
        for secret in ("hf_very_secret", worker.token):
            assert not any(secret in text for text in shown)
        assert "token *** hub ***" in worker.log_tail

    supervised(use)


@pytest.mark.parametrize(("engine", "tuned"), [("llama.cpp", "glibc.malloc.hugetlb=1"), ("transformers", None)])
def test_only_llama_cpp_s_worker_has_its_weights_in_huge_pages(
    engine: str, tuned: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    recipe = RECIPE.model_copy(update={"engine": engine})

    async def use(it: Supervisor) -> None:
        worker = it.launch(recipe)
        await worker.settled.wait()
        assert worker.pid is not None, worker.failure
        assert psutil.Process(worker.pid).environ().get("GLIBC_TUNABLES") == tuned

    supervised(use)
    # What the user tunes stays. Not read from the process: glibc 2.36 writes into its own copy there.
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    own = "glibc.malloc.check=0" + (f":{tuned}" if tuned else "")
    assert (os.environ | supervisor._environment(recipe))["GLIBC_TUNABLES"] == own


def test_the_workers_own_reason_is_raised() -> None:
    async def use(it: Supervisor) -> None:
        worker = it.launch(RECIPE)
        await worker.settled.wait()
        assert worker.status == "failed"
        assert worker.failure is not None
        assert isinstance(error_from(worker.failure.model_dump()), OutOfMemory)
        assert worker.failure.hint == "try less"

    supervised(use, "--fail", "oom")


def test_a_worker_that_dies_while_loading_has_failed_with_its_signal() -> None:
    async def use(it: Supervisor) -> None:
        worker = it.launch(RECIPE)
        await worker.settled.wait()
        assert worker.status == "failed"
        assert worker.failure is not None
        assert worker.failure.kind == "worker"
        assert "while loading (signal SIGSEGV)" in worker.failure.message
        assert str(worker.log.path) in worker.failure.hint

    supervised(use, "--die-loading", str(int(signal.SIGSEGV)))


@pytest.mark.parametrize(("kills", "kind"), [((3, 4), "oom"), ((3, 3), "worker")])
def test_sigkill_is_out_of_memory_when_the_kernel_counted_one(
    kills: tuple[int, int], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter(kills)
    monkeypatch.setattr(supervisor, "oom_kills", lambda: next(counts))

    async def use(it: Supervisor) -> None:
        worker = await ready(it)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        await it.wait(worker.id)
        assert worker.status == "died"
        assert worker.failure is not None
        assert worker.failure.kind == kind
        assert worker.failure.hint

    supervised(use)


def test_a_program_that_is_not_there_is_a_failed_load() -> None:
    async def run() -> None:
        it = Supervisor(("/nonexistent/python",))
        worker = it.launch(RECIPE)
        await worker.settled.wait()
        assert worker.status == "failed"
        assert worker.failure is not None
        assert worker.failure.kind == "load"
        await it.close()
        assert devices.holders("cpu") == ()

    asyncio.run(run())


def test_cancelling_a_load_ends_the_process() -> None:
    async def use(it: Supervisor) -> None:
        worker = it.launch(RECIPE)
        await until(lambda: worker.progress and worker.progress.stage == "load")
        pid = worker.pid
        assert pid is not None
        await it.stop(worker.id)
        assert worker.status == "stopped"
        assert worker.failure is not None
        assert worker.failure.kind == "cancelled"
        assert gone(pid)

    supervised(use, "--hang")


def test_a_worker_is_cancelled_before_it_is_even_spawned() -> None:
    async def use(it: Supervisor) -> None:
        worker = it.launch(RECIPE)
        await it.stop(worker.id)
        assert worker.status == "stopped"
        assert worker.pid is None or gone(worker.pid)

    supervised(use, "--hang")


def test_a_worker_that_ignores_everything_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SHUTDOWN_GRACE_S", 0.1)
    monkeypatch.setattr(supervisor, "TERMINATE_GRACE_S", 0.1)

    async def use(it: Supervisor) -> None:
        worker = await ready(it)
        assert worker.pid is not None
        await it.stop(worker.id)
        assert gone(worker.pid)

    supervised(use, "--stubborn")


def test_several_workers_share_the_device_and_give_it_back() -> None:
    async def use(it: Supervisor) -> None:
        first, second = await asyncio.gather(ready(it), ready(it))
        assert first.url != second.url
        assert len(devices.holders("cpu")) == 2
        with pytest.raises(Busy, match="smollm2"):
            devices.acquire("cpu", "measure", "a bench", besides={first.lease.holder.id})
        await it.stop(second.id)
        both = {first.lease.holder.id, second.lease.holder.id}
        with devices.acquire("cpu", "measure", "a bench", besides=both), pytest.raises(Busy, match="a bench"):
            it.launch(RECIPE)
        assert len(it.workers) == 2

    supervised(use)
    assert devices.holders("cpu") == ()


def test_workers_of_a_measurement_start_on_the_device_that_it_holds() -> None:
    async def run() -> str:
        with devices.acquire("cpu", "measure", "drift") as held:
            outsider, insider = Supervisor(command()), Supervisor(command(), within=[held.holder.id])
            with pytest.raises(Busy, match="drift"):
                outsider.launch(RECIPE)
            worker = await ready(insider)
            await insider.close()
            return worker.status

    assert asyncio.run(run()) == "stopped"


def test_start_checks_first_in_a_thread_and_raises_what_the_worker_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def admit(recipe: Recipe, **options: Any) -> Recipe:
        time.sleep(0.3)
        if recipe.compile != "off":
            raise RecipeError("compile: no", "Leave it.")
        return RECIPE

    monkeypatch.setattr(admission, "admit", admit)

    async def use(it: Supervisor) -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with pytest.raises(RecipeError):
            await it.start(Recipe(compile="graphs"))
        assert ticks > 10
        ticking.cancel()
        assert it.workers == {}
        with pytest.raises(OutOfMemory, match="no luck"):
            await it.start(RECIPE)

    supervised(use, "--fail", "oom")


def test_a_model_larger_than_memory_is_refused_with_the_numbers_unless_forced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mcp_core.models.footprint import Footprint

    sizes = dict.fromkeys(("weights_bytes", "kv_bytes_per_token", "kv_bytes", "activation_bytes"), 1)
    more = dict.fromkeys(("overhead_bytes", "peak_bytes", "load_peak_bytes", "download_bytes"), 1)
    rest = dict.fromkeys(("prepare_bytes", "context_tokens", "free_bytes", "total_bytes"), 1)
    huge = Footprint(
        **sizes, **more, **rest, device="cpu", fits=False, reason="Needs 900 GB; 10 GB are free.", parts=()
    )
    monkeypatch.setattr(admission.footprint, "estimate", lambda *_, **__: huge)
    monkeypatch.setattr(admission.catalog, "resolve", lambda ref, **_: SimpleNamespace(quantized=None))
    with pytest.raises(DoesNotFit, match="900 GB") as caught:
        admission.admit(Recipe(dtype="fp32"))
    assert "--force" in caught.value.hint
    admitted = admission.admit(Recipe(dtype="fp32"), force=True)
    assert (admitted.device, admitted.threads is not None) == ("cpu", True)


def test_a_draft_model_that_leaves_no_room_is_refused() -> None:
    alone = Recipe().replace({"model": {"source": "shape", "id": "custom", "shape": SMALL}, "dtype": "fp32"})
    admission.admit(alone)
    draft = {"source": "shape", "id": "custom", "shape": SMALL | {"layers": 200, "hidden": 16384}}
    guessed = alone.replace({"speculation": "draft", "draft": draft})
    with pytest.raises(DoesNotFit, match="Does not fit: needs"):
        admission.admit(guessed)
    assert admission.admit(guessed, force=True).draft == guessed.draft


SMALL = {"layers": 1, "hidden": 64, "intermediate": 64, "heads": 2, "kv_heads": 1, "vocab": 300}


def test_cancelling_start_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "admit", lambda recipe, **_: recipe)

    async def use(it: Supervisor) -> None:
        starting = asyncio.create_task(it.start(RECIPE))
        await until(lambda: any(worker.pid for worker in it.workers.values()))
        (worker,) = it.workers.values()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert worker.pid is not None
        assert gone(worker.pid)

    supervised(use, "--hang")


def test_a_wrong_token_is_told_and_the_worker_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(("right", "id"))
    monkeypatch.setattr(supervisor.secrets, "token_urlsafe", lambda _: next(tokens))

    async def use(it: Supervisor) -> None:
        worker = it.launch(RECIPE)
        worker.token = "wrong"
        await worker.settled.wait()
        assert worker.status == "failed"
        assert worker.failure is not None
        assert worker.failure.message == "no such token"
        await it.wait(worker.id)
        assert worker.pid is not None
        assert gone(worker.pid)

    supervised(use)


_PARENT = """
import asyncio, sys
from mcp_core.recipe import Recipe
from mcp_core.serving.supervisor import Supervisor

async def main():
    supervisor = Supervisor(sys.argv[1:])
    worker = supervisor.launch(Recipe(dtype="fp32", device="cpu", threads=1))
    while worker.pid is None:
        await asyncio.sleep(0.01)
    print(worker.pid, flush=True)
    await worker.settled.wait()
    print(worker.status, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["loading", "serving"])
def test_no_worker_outlives_the_app(number: signal.Signals, when: str) -> None:
    flags = ("--hang",) if when == "loading" else ()
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, *command(*flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with parent:
        assert parent.stdout is not None
        worker_pid = int(parent.stdout.readline())
        if when == "serving":
            assert parent.stdout.readline().strip() == "ready"
        assert not gone(worker_pid)
        parent.send_signal(number)
        parent.wait(10)
        end = time.monotonic() + 5
        while not gone(worker_pid) and time.monotonic() < end:
            time.sleep(0.05)
        orphan = not gone(worker_pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker_pid, signal.SIGKILL)
        assert not orphan


def test_killed_in_the_middle_of_a_stream_the_text_so_far_and_the_reason_are_there() -> None:
    async def use(it: Supervisor) -> None:
        worker = await ready(it)
        assert worker.client is not None
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
        chunks = [chunk async for chunk in worker.client.stream("/v1/chat/completions", body)]
        assert "".join(chunk.text for chunk in chunks).startswith("w0 w1 w2 ")
        assert chunks[-1].error is not None
        assert chunks[-1].error.kind == "worker"
        await it.wait(worker.id)
        assert worker.failure is not None
        assert "SIGKILL" in worker.failure.message
        with pytest.raises(WorkerDied):
            await worker.client.state()

    supervised(use, "--die-after", "5")


def test_logs_are_bounded() -> None:
    from mcp_core.serving import worker_record

    log = worker_record.WorkerLog("worker-x")
    for index in range(worker_record.LOG_TAIL_LINES + 50):
        log.add(f"{index} " + "x" * 20_000)
    log.close()
    assert len(log.tail) == worker_record.LOG_TAIL_LINES
    files = list(log.path.parent.glob("*worker-x*"))
    assert sum(file.stat().st_size for file in files) <= 2 * worker_record.LOG_FILE_BYTES


def test_what_is_printed_beside_the_protocol_is_log(tmp_path: Path) -> None:
    script = tmp_path / "chatty.py"
    events = [
        "a library says hello",
        '{"not": "an event"}',
        json.dumps({"event": "failed", "failure": McpError("why", "how").as_dict()}),
    ]
    script.write_text(f"import sys\nsys.stdin.readline()\nprint({chr(10).join(events)!r})\n")

    async def run() -> None:
        it = Supervisor((sys.executable, str(script)))
        worker = it.launch(RECIPE)
        await worker.settled.wait()
        await it.close()
        assert worker.log_tail == ("a library says hello", '{"not": "an event"}')
        assert worker.failure is not None
        assert worker.failure.message == "why"

    asyncio.run(run())


def test_a_local_model_is_called_by_its_name_while_it_loads(tmp_path: Path) -> None:
    local = RECIPE.replace({"model": {"source": "folder", "id": str(tmp_path / "tiny")}})

    async def use(it: Supervisor) -> str:
        return it.launch(local).title

    assert supervised(use) == "tiny"
