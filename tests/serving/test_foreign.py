"""The process beside a foreign server, with a stand-in for the engine (tests/engines)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mcp_core.errors import DoesNotFit, LoadFailed, RecipeError, RequestRejected, error_from
from mcp_core.evaluation.benchmark import measure
from mcp_core.hardware import Device, Hardware
from mcp_core.models import catalog
from mcp_core.models.stored_quantization import StoredQuantization
from mcp_core.recipe import ModelRef, Recipe, ShapeSpec
from mcp_core.results import Run
from mcp_core.serving import foreign, foreign_server, supervisor
from mcp_core.serving.admission import require_foreign
from mcp_core.serving.foreign import memory_share
from mcp_core.serving.foreign_server import ForeignServer
from mcp_core.serving.supervisor import Supervisor, Worker
from mcp_core.views import Progress
from mcp_core.workload import Lengths, Workload
from tests.engines.conftest import engine_python, gpu  # noqa: F401 - fixtures

SHAPE = ShapeSpec(layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2, vocab=400, context=64)
RECIPE = Recipe(model=ModelRef(source="shape", id="custom", shape=SHAPE), engine="vllm", device="cuda:0", threads=1)
WORKLOAD = Workload(
    prompt_tokens=Lengths(min=8, max=8), output_tokens=Lengths(min=5, max=5), requests=6, concurrency=2
)

pytestmark = pytest.mark.usefixtures("gpu", "engine_python")


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[int]]]:
    """Ids of the stand-in and of what it started; none may be left after a test."""
    file = tmp_path / "pids.json"
    monkeypatch.setenv("STAND_IN_PIDS", str(file))

    def read() -> list[int]:
        return json.loads(file.read_text()) if file.exists() else []

    yield read
    for pid in read():  # only where a test failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def none_left(pids: list[int], seconds: float = 8.0) -> bool:
    end_s = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end_s:
        time.sleep(0.05)
    return not any(map(alive, pids))


def supervised(use: Callable[[Supervisor], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        it = Supervisor()
        try:
            return await use(it)
        finally:
            await it.close()

    return asyncio.run(run())


async def started(it: Supervisor, recipe: Recipe, told: list[Progress] | None = None) -> Worker:
    worker = it.launch(recipe, on_progress=told.append if told is not None else None)
    await worker.settled.wait()
    if worker.failure is not None:
        raise error_from(worker.failure.model_dump())
    return worker


async def measured(worker: Worker, workload: Workload, machine: Hardware) -> Run:
    assert worker.url is not None
    return await measure(worker.url, worker.token, worker.recipe, workload, machine, control_url=worker.control_url)


def test_vllm_from_recipe_to_run(
    gpu: Hardware,  # noqa: F811
    pids: Callable[[], list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = tmp_path / "seen.json"
    monkeypatch.setenv("STAND_IN_SEEN", str(seen))
    monkeypatch.setenv("PYTHONPATH", "/of/ours")
    told: list[Progress] = []

    async def use(it: Supervisor) -> tuple[Worker, Run, Run]:
        worker = await started(it, RECIPE, told)
        assert worker.client is not None
        await _ask(worker)
        run = await measured(worker, WORKLOAD, gpu)
        longer = WORKLOAD.model_copy(update={"prompt_tokens": Lengths(min=60, max=60)})
        return worker, run, await measured(worker, longer, gpu)

    worker, run, refused = supervised(use)
    assert none_left(pids())
    assert len(pids()) == 2

    # What the server was given.
    given = json.loads(seen.read_text())
    assert "--load-format" in given["argv"]
    assert worker.token not in json.dumps(given["argv"])
    assert given["env"]["CUDA_VISIBLE_DEVICES"] == "0"
    assert given["env"]["PYTHONPATH"] is None
    assert given["env"]["MCP_HOME"] is None
    assert given["files"] == []
    assert not any((tmp_path / "mcp-home" / "engines").iterdir())

    # What is known of it.
    assert {each.stage for each in told} >= {"load", "warm-up"}
    state = worker.state
    assert state["title"] == "custom shape (random weights)"
    assert (state["vocab_size"], state["special_ids"], state["max_context"]) == (400, [256, 257], 64)
    assert state["memory"]["weights_bytes"] == round(2.5 * 1024**3)
    assert state["memory"]["peak_bytes"] == 8 * 10**9
    assert state["memory"]["process_peak_bytes"] > 10**6
    effective = state["effective"]
    assert (effective["engine"], effective["engine_version"]) == ("vllm", "0.23.0")
    assert effective["attention"] == "flash_attention_3"
    assert effective["not_carried"][0].startswith("attention: ")

    # What was measured: token ids, exact lengths, counters of the engine.
    assert run.status == "ok", run.failure
    assert run.evidence == "measured on vllm"
    assert run.measurement is not None
    assert run.measurement.completed == 6
    assert run.measurement.prompt_tokens == 6 * 8
    assert run.measurement.output_tokens == 6 * 5
    assert run.measurement.engine_output_tok_s is None
    assert run.memory is not None
    assert run.memory.peak_bytes == 8 * 10**9
    assert run.effective is not None
    assert run.effective.not_carried
    assert refused.status == "refused"
    assert refused.failure is not None
    assert "holds 64" in refused.failure.message


async def _ask(worker: Worker) -> None:
    """A chat, the counters, and what nobody can ask of another engine."""
    assert worker.client is not None
    message = {"role": "user", "content": "hello"}
    body = {"model": worker.recipe.model.id, "messages": [message], "max_tokens": 3}
    chunks = [chunk async for chunk in worker.client.stream("/v1/chat/completions", body)]
    assert "".join(chunk.text for chunk in chunks) == " w0 w1 w2"
    stats = await worker.client.stats()
    assert (stats.running, stats.queued, stats.kv_capacity_tokens) == (2, 3, 1600)
    assert stats.output_tokens_total == 3
    with pytest.raises(RequestRejected, match="vLLM"):
        await worker.client.memory_analysis()
    with pytest.raises(RequestRejected, match="vLLM"):
        await worker.client.set_recipe(worker.recipe)


def test_sglang_and_its_death_while_serving(gpu: Hardware, pids: Callable[[], list[int]]) -> None:  # noqa: F811
    async def use(it: Supervisor) -> tuple[Worker, Run]:
        worker = await started(it, RECIPE.replace({"engine": "sglang", "batching.mode": "continuous"}))
        run = await measured(worker, WORKLOAD, gpu)
        os.kill(pids()[0], signal.SIGKILL)
        return await it.wait(worker.id), run

    worker, run = supervised(use)
    assert run.status == "ok", run.failure
    assert run.measurement is not None
    assert run.measurement.output_tokens == 30
    assert worker.status == "died"
    assert worker.failure is not None
    assert "while serving (signal SIGKILL)" in worker.failure.message
    assert none_left(pids())  # its core, too, which had ignored SIGTERM


def test_a_server_that_does_not_come_up_says_why(
    pids: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "STAND_IN_FAILURE", "(E pid=3) ERROR 11-25 10:00:00 [x.py:1] ValueError: no such thing as KEY."
    )
    with pytest.raises(  # its key is shown to nobody
        LoadFailed, match=r"vLLM ended while loading \(exit code 3\).*said: ValueError: no such thing as \*\*\*\."
    ):
        supervised(lambda it: started(it, RECIPE))
    assert none_left(pids())


@pytest.mark.usefixtures("pids")
def test_the_cause_is_not_lost_behind_the_traceback_of_what_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    cause = "(EngineCore pid=9) ValueError: no such thing."
    waiting = ["(APIServer pid=8)     return self._loop.run_until_complete(task)"] * 300
    last = "(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above."
    monkeypatch.setenv("STAND_IN_FAILURE", "\n".join((cause, *waiting, last)))
    with pytest.raises(LoadFailed, match=r"It said: ValueError: no such thing\."):
        supervised(lambda it: started(it, RECIPE))


def test_nothing_is_left_when_the_companion_is_killed(pids: Callable[[], list[int]]) -> None:
    async def use(it: Supervisor) -> Worker:
        worker = await started(it, RECIPE)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        return await it.wait(worker.id)

    assert supervised(use).status == "died"
    assert len(pids()) == 2
    assert none_left(pids())


def test_an_interpreter_that_lacks_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_LACKS", "vllm")
    with pytest.raises(LoadFailed, match="has no vLLM") as caught:
        supervised(lambda it: started(it, RECIPE))
    assert "-m pip install vllm" in caught.value.hint


def test_a_recipes_own_path_is_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    with pytest.raises(RecipeError, match="not among the interpreters"):
        supervised(lambda it: started(it, RECIPE.replace({"engine_python": str(trap)})))
    assert not (tmp_path / "sprung").exists()


def test_nothing_is_left_when_the_app_is_killed(pids: Callable[[], list[int]], tmp_path: Path) -> None:
    """kill -9 of the process that supervises: the companion sees its stdin end."""
    code = (
        "import asyncio, sys\n"
        "from mcp_core.recipe import Recipe\n"
        "from mcp_core.serving import supervisor\n"
        f"supervisor.FOREIGN_COMMAND = (sys.executable, {str(COMPANION)!r})\n"
        "async def main():\n"
        "    it = supervisor.Supervisor()\n"
        f"    worker = it.launch(Recipe.from_json({RECIPE.to_json()!r}))\n"
        "    await worker.settled.wait()\n"
        "    print(worker.status, worker.pid, worker.failure, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    app = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert app.stdout is not None
    with app.stdout:
        status, companion, *rest = app.stdout.readline().split()
        assert status == "ready", rest
        app.kill()
        app.wait()
    assert len(pids()) == 2
    assert none_left([*pids(), int(companion)])


def test_the_companion_ends_all_before_the_supervisor_ends_it() -> None:
    assert foreign.TERMINATE_GRACE_S + foreign.KILL_GRACE_S < supervisor.TERMINATE_GRACE_S


def test_a_question_that_cannot_be_asked_is_no_healthy_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cannot(*_: object) -> None:
        raise ValueError("no url")

    async def ask() -> None:
        server = await ForeignServer.start("X", "token", ("sleep", "60"), {}, tmp_path, lambda _line: None)
        try:
            await server.healthy("nowhere")
        finally:
            await server.end(5)

    monkeypatch.setattr(foreign_server, "_ask_until_healthy", cannot)
    with pytest.raises(ValueError, match="no url"):
        asyncio.run(ask())


def test_an_interpreter_that_tells_no_version_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, pid = tmp_path / "python", tmp_path / "pid"
    python.write_text(f"#!/bin/sh\necho $$ > {pid}\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(foreign_server, "VERSION_TIMEOUT_S", 1.0)
    with pytest.raises(LoadFailed, match="cannot be run: no answer within 1 s"):
        asyncio.run(foreign_server.version_of(python, "vllm", "vLLM"))
    assert none_left([int(pid.read_text())])


COMPANION = Path(__file__).parents[1] / "engines" / "companion_with_gpu.py"


def device(free: float) -> Device:
    return Device(
        id="cuda:0", kind="cuda", name="X", memory_total_bytes=80 * 10**9, memory_free_bytes=int(free * 80 * 10**9)
    )


@pytest.mark.parametrize(("free", "share"), [(1.0, 0.90), (0.985, 0.90), (0.5, 0.48), (0.01, 0.05)])
def test_the_server_takes_what_is_free_and_no_more(free: float, share: float) -> None:
    assert memory_share(device(free)) == share


def test_admission_knows_what_the_engine_loads_and_whether_weights_fit(gpu: Hardware) -> None:  # noqa: F811
    resolved = catalog.resolve(RECIPE.model)
    require_foreign(RECIPE, resolved, gpu)
    small = gpu.model_copy(update={"devices": (gpu.devices[0], device(0).model_copy(update={"id": "cuda:0"}))})
    with pytest.raises(DoesNotFit, match=r"cuda:0 has 0\.0 GB free"):
        require_foreign(RECIPE, resolved, small)
    require_foreign(RECIPE, resolved, small, force=True)


@pytest.mark.parametrize(("engine", "loads"), [("vllm", True), ("sglang", False)])
def test_admission_refuses_a_method_that_the_engine_lacks(gpu: Hardware, engine: str, loads: bool) -> None:  # noqa: F811
    import dataclasses

    stored = StoredQuantization("torchao", "torchao Int8", 8, ("torchao",))
    resolved = dataclasses.replace(catalog.resolve(RECIPE.model), quantized=stored)
    refusal = contextlib.nullcontext() if loads else pytest.raises(RecipeError, match="SGLang loads no checkpoint")
    with refusal:
        require_foreign(RECIPE.replace({"engine": engine}), resolved, gpu)
    if loads:
        with pytest.raises(RecipeError, match="already quantized"):
            require_foreign(
                RECIPE.replace({"engine": engine, "quantization.scheme": "torchao-fp8-dynamic"}), resolved, gpu
            )
