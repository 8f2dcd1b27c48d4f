"""A sweep over workers whose speeds are planted: who goes on, what is reused, what a kill and a cancel leave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mcp_core import devices
from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import SweepRecord
from mcp_core.decision.sweeps import Sweeps
from mcp_core.errors import Busy, Cancelled, InputError, StoreError, WorkloadError
from mcp_core.evaluation import sweep
from mcp_core.evaluation.new_sweep import begin
from mcp_core.evaluation.sweep import Host, race
from mcp_core.evaluation.sweep_table import reasons, sweep_rows
from mcp_core.hardware import Hardware, detect
from mcp_core.results import Run
from mcp_core.sweep_plan import SweepPlan
from tests.evaluation import planted_noise
from tests.evaluation.known_ceilings import keep_known

WORKER = Path(__file__).parent / "sweep_worker.py"
COMMAND = (sys.executable, str(WORKER))
SHAPE = {"layers": 1, "hidden": 32, "intermediate": 64, "heads": 2, "kv_heads": 1, "vocab": 300, "context": 512}
PLAN: dict[str, Any] = {
    "name": "planted",
    "base": {
        "model": {"source": "shape", "id": "custom", "shape": SHAPE},
        "dtype": "fp32",
        "threads": 1,
        "device": "cpu",
    },
    "axes": {
        "scheme": ["none", "bnb-nf4", "bnb-int8", "torchao-int4-weight-only"],
        "batching": ["off", "continuous"],
    },
    "workload": {"name": "w", "concurrency": 2, "prompt_tokens": 4, "output_tokens": 8, "warmup_requests": 0},
    "probe_s": 0.2,
    "keep": 3,
    "capacity_s": 0.2,
    "confirm": 1,
    "starts": 2,
    "confirm_s": 0.2,
}
# The whole command line over the planted workers, in a process that can be killed.
KILLABLE = f"""
import functools, sys
from mcp_core import cli
from mcp_core.commands import sweep
from tests.evaluation import planted_noise
planted_noise.install()
sweep.Host = functools.partial(sweep.Host, command=(sys.executable, {str(WORKER)!r}))
sys.exit(cli.main(sys.argv[1:]))
"""


def plan(**changes: Any) -> SweepPlan:
    return SweepPlan.from_dict(PLAN | changes)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else that runs on this machine makes a sweep repeat what it confirms; ceilings are known."""
    keep_known()
    monkeypatch.setattr(sweep, "measure", planted_noise.planted)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log.txt"
    path.touch()
    monkeypatch.setenv("SWEEP_LOG", str(path))
    return path


def swept(store: Store, asked: SweepPlan) -> SweepRecord:
    host = Host(detect(), command=COMMAND)
    return asyncio.run(race(store, begin(store, asked, host.hardware), host))


def test_the_planted_order_comes_out_and_workers_are_shared(log: Path) -> None:
    with Store() as store:
        record = swept(store, plan())
        rows = sweep_rows(store, record)
    assert record.state == "done"
    assert [(row.cell.name, row.level) for row in rows[:4]] == [
        ("bnb-nf4 · continuous", "2 fresh starts"),
        ("bnb-nf4 · off", "measured"),
        ("unquantized · continuous", "measured"),
        ("bnb-int8 · continuous", "probed"),
    ]
    assert [(row.cell.state, row.score) for row in rows[6:]] == [("refused", None)] * 2
    assert "works with bf16 only" in rows[6].reason
    assert reasons(record.cells) == ((rows[6].reason, 2),)
    # The figures of what was confirmed are those of its confirmations alone.
    assert {run.workload.repeat for run in rows[0].runs} == {2, 3}
    assert rows[0].run is not None
    assert rows[0].run.evidence == "measured on transformers"
    assert [row.run.evidence for row in rows[1:4:2] if row.run] == [
        "measured on transformers, in a race",
        "probed on transformers",
    ]
    starts = log.read_text().splitlines()
    probes = ["start none off", "live none continuous", "start bnb-nf4 off", "live bnb-nf4 continuous"]
    assert starts[:4] == probes
    assert starts[-2:] == ["start bnb-nf4 continuous"] * 2


def test_a_worker_that_dies_or_cannot_load_is_a_row_with_its_reason(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEP_DIES", "bnb-nf4")
    monkeypatch.setenv("SWEEP_FAILS", "bnb-int8")
    with Store() as store:
        asked = plan(confirm=0, keep=1, axes={"scheme": ["none", "bnb-nf4", "bnb-int8"]})
        record = swept(store, asked)
        states = {cell.name: (cell.state, cell.failure.kind if cell.failure else None) for cell in record.cells}
        assert states == {
            "unquantized": ("done", None),
            "bnb-nf4": ("failed", "worker"),
            "bnb-int8": ("failed", "oom"),
        }
        assert [run.status for run in store.list()] == ["ok", "failed", "failed", "ok"]
        failed = record.cells[1].failure
        assert failed is not None
        assert "SIGKILL" in failed.message


def test_what_does_not_fit_is_refused_with_bytes_and_is_a_run() -> None:
    huge = {"source": "shape", "id": "custom", "shape": SHAPE | {"layers": 512, "hidden": 65536, "heads": 512}}
    with Store() as store:
        small = PLAN["base"]["model"]
        sweep_id = begin(store, plan(axes={"model": [small, huge]}), detect())
        record = Sweeps(store).get(sweep_id)
        assert record is not None
        assert [cell.state for cell in record.cells] == ["pending", "refused"]
        assert "GB free of" in (record.cells[1].failure.message if record.cells[1].failure else "")
        (run,) = store.list()
        assert (run.status, record.run_ids) == ("refused", (run.id,))


def test_a_plan_of_which_nothing_can_run_is_refused() -> None:
    with Store() as store, pytest.raises(InputError, match=r"None of the 1 configurations can run here.*bf16 only"):
        begin(store, plan(axes={"scheme": ["torchao-int4-weight-only"]}), detect())


def test_more_clients_than_are_let_in_is_refused() -> None:
    tight = {"batching": [{"mode": "static", "max_requests": 1}, "static"]}
    with Store() as store:
        record = Sweeps(store).get(begin(store, plan(axes=tight), detect()))
        assert record is not None
        assert [cell.state for cell in record.cells] == ["refused", "pending"]


def test_a_goal_without_a_load_finds_each_capacity_and_confirms_there() -> None:
    goal = {"slo": {"e2e_ms": {"p50": 140}}}  # 2.5 ms a token for each request that runs, 16 tokens: 3 at once
    workload = PLAN["workload"] | {"output_tokens": 16, "requests": 8}
    asked = plan(axes={"scheme": ["bnb-nf4"]}, workload=workload, goal=goal, probe_s=0, starts=1)
    with Store() as store:
        record = swept(store, asked.model_copy(update={"capacity_s": 60}))
        (cell,) = record.cells
        points = [(run.workload.load, each.final) for each in cell.runs if (run := store.get(each.run_id))]
        answers = [load for load, final in points if final]
        assert record.state == "done"
        assert answers[0] in (2, 3)
        assert answers[1] == answers[0]
        assert {load for load, _ in points} >= {2, 4}
        assert max(load or 0 for load, _ in points) > (answers[0] or 0)


def test_a_search_that_raises_leaves_its_worker_to_the_next_cell(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: Any, **__: Any) -> Any:
        raise WorkloadError("Too few requests to judge by.")

    monkeypatch.setattr(sweep, "measure_capacity", refused)
    asked = plan(axes={"batching": ["off", "continuous"]}, goal={"slo": {"e2e_ms": {"p50": 140}}}, probe_s=0)
    with Store() as store:
        record = swept(store, asked)
    assert [cell.state for cell in record.cells] == ["refused", "refused"]
    assert log.read_text().splitlines() == ["start none off", "live none continuous"]


def environment(log: Path) -> dict[str, str]:
    return os.environ | {"SWEEP_LOG": str(log), "PYTHONPATH": str(Path(__file__).parents[2])}


def runs_of(asked: SweepPlan) -> int:
    with Store() as store:
        record = Sweeps(store).newest(asked)
        return len(record.run_ids) if record else 0


def test_a_killed_sweep_goes_on_exactly_where_it_stopped(tmp_path: Path, log: Path) -> None:
    asked = plan(axes={"scheme": ["none", "bnb-nf4", "bnb-int8"]}, keep=2, starts=1)
    file, out = tmp_path / "plan.json", tmp_path / "out.jsonl"
    file.write_text(asked.to_json())
    command = [sys.executable, "-c", KILLABLE, "sweep", str(file)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(log))
    until = time.monotonic() + 30
    while runs_of(asked) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    with Store() as store:
        killed = Sweeps(store).newest(asked)
        assert killed is not None
        before = killed.run_ids
        assert (killed.state, len(before) >= 2) == ("interrupted", True)
    second = subprocess.run(
        [*command, "--resume", "--out", str(out)], capture_output=True, text=True, env=environment(log), check=False
    )
    assert second.returncode == 0, second.stderr
    assert f"sweep {killed.id} goes on: {len(before)} Runs are there" in second.stderr
    lines = [json.loads(line) for line in second.stdout.splitlines()]
    with Store() as store:
        done = Sweeps(store).get(killed.id)
        assert done is not None
        assert done.state == "done"
        # 3 probes, 2 measured, 1 confirmed: every step once, none of the first ones again.
        assert len(done.run_ids) == len(set(done.run_ids)) == 6
        assert set(before) | {line["id"] for line in lines} == set(done.run_ids)
        assert len(lines) == 6 - len(before)
    assert len(out.read_text().splitlines()) == 6
    third = subprocess.run(
        [*command, "--resume"], capture_output=True, text=True, env=environment(log), check=False
    )
    assert (third.returncode, third.stdout) == (0, "")
    assert "has come to its end already" in third.stderr


async def seen_or_ended(event: asyncio.Event, task: asyncio.Task[Any]) -> None:
    """Until the event; a sweep that ends before it, or is late, fails the test instead of holding it up."""
    seen = asyncio.create_task(event.wait())
    done, _ = await asyncio.wait((seen, task), timeout=60, return_when=asyncio.FIRST_COMPLETED)
    assert seen in done, task


def test_a_worker_whose_order_never_came_ends_by_itself() -> None:
    ended = subprocess.run(COMMAND, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"")


def test_cancel_keeps_what_is_done() -> None:
    with Store() as store:
        machine = detect()
        sweep_id = begin(store, plan(), machine)

        async def stopped_after(count: int) -> None:
            seen: list[str] = []
            enough = asyncio.Event()

            def saw(run: Run) -> None:
                seen.append(run.id)
                if len(seen) == count:
                    enough.set()

            task = asyncio.create_task(race(store, sweep_id, Host(machine, on_run=saw, command=COMMAND)))
            await seen_or_ended(enough, task)
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(Cancelled, match="stopped"):
                await task

        asyncio.run(stopped_after(2))
        record = Sweeps(store).get(sweep_id)
        assert record is not None
        assert (record.state, len(record.run_ids), record.is_resumable) == ("cancelled", 2, True)
        assert record.count("running") == 0
        assert devices.holders("cpu") == ()
        claimed = Sweeps(store).claim(sweep_id, machine)
        assert claimed.id == sweep_id
        with pytest.raises(Busy, match="running already"):
            Sweeps(store).claim(sweep_id, machine)


def test_a_sweep_waits_for_a_device_that_is_measured_and_says_so() -> None:
    said: list[str] = []
    waits = asyncio.Event()

    def tell(stage: str, _fraction: float | None, message: str) -> None:
        said.append(f"{stage}: {message}")
        waits.set()

    async def use(store: Store) -> None:
        machine = detect()
        sweep_id = begin(store, plan(axes={}, probe_s=0, confirm=0), machine)
        lease = devices.acquire("cpu", "measure", "somebody")
        task = asyncio.create_task(race(store, sweep_id, Host(machine, tell=tell, command=COMMAND)))
        await seen_or_ended(waits, task)
        assert [each.label for each in devices.waiters("cpu")] == ["sweep planted"]
        assert not task.done()
        lease.release()
        assert (await task).state == "done"

    with Store() as store:
        asyncio.run(use(store))
    assert said[0].startswith("wait: cpu is in use by somebody")


def test_of_two_that_resume_at_once_one_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Store() as store:
        machine = detect()
        sweep_id = begin(store, plan(), machine)
        Sweeps(store).end(sweep_id, "cancelled")
        late = Sweeps(store)
        record = late.get(sweep_id)

        def as_another_claims(_: str) -> SweepRecord | None:
            Sweeps(store).claim(sweep_id, machine)
            return record

        monkeypatch.setattr(late, "get", as_another_claims)
        with pytest.raises(Busy, match="running already"):
            late.claim(sweep_id, machine)


def test_a_sweep_that_ends_in_an_error_says_so_and_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(*_: Any) -> None:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(sweep._Race, "run", failing)
    with Store() as store:
        machine = detect()
        sweep_id = begin(store, plan(), machine)
        with pytest.raises(StoreError, match="disk is full"):
            asyncio.run(race(store, sweep_id, Host(machine, command=COMMAND)))
        record = Sweeps(store).get(sweep_id)
    assert record is not None
    assert (record.state, record.message, record.is_resumable) == ("failed", "The disk is full.", True)


def test_another_machine_cannot_resume_it() -> None:
    with Store() as store:
        machine = detect()
        sweep_id = begin(store, plan(), machine)
        Sweeps(store).end(sweep_id, "cancelled")
        with pytest.raises(InputError, match="was begun on"):
            Sweeps(store).claim(sweep_id, machine.model_copy(update={"host": "elsewhere"}))
        Sweeps(store).end(sweep_id, "done")
        with pytest.raises(InputError, match="come to its end"):
            Sweeps(store).claim(sweep_id, machine)
        with pytest.raises(InputError, match="no sweep"):
            Sweeps(store).claim("none-such", machine)


def test_another_card_in_a_host_of_that_name_cannot_resume_it() -> None:
    def with_card(uuid: str) -> Hardware:
        machine = detect()
        cpu = machine.devices[0].model_copy(update={"uuid": uuid})
        return machine.model_copy(update={"devices": (cpu,)})

    huge = {"source": "shape", "id": "custom", "shape": SHAPE | {"layers": 512, "hidden": 65536, "heads": 512}}
    with Store() as store:
        sweep_id = begin(
            store, plan(axes={"model": [PLAN["base"]["model"], huge]}), with_card("a")
        )  # a Run: refused
        Sweeps(store).end(sweep_id, "cancelled")
        with pytest.raises(InputError, match="begun on another device than this machine's cpu"):
            Sweeps(store).claim(sweep_id, with_card("b"))
        assert Sweeps(store).claim(sweep_id, with_card("a")).id == sweep_id
