"""Ceilings before a sweep's first cell, planted: measured once, counted, left out when they fail."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import SweepRecord
from mcp_core.decision.sweeps import Sweeps
from mcp_core.errors import Cancelled
from mcp_core.evaluation import sweep
from mcp_core.evaluation.new_sweep import begin
from mcp_core.evaluation.sweep import Host, race
from mcp_core.evaluation.sweep_budget import budget_of, runnable
from mcp_core.evaluation.sweep_ceilings import CEILINGS_S, lacking_ceilings
from mcp_core.evaluation.sweep_cells import check_cells
from mcp_core.hardware import Device, Hardware, detect
from mcp_core.recipe import Recipe
from mcp_core.sweep_plan import SweepPlan
from tests.evaluation import planted_noise
from tests.evaluation.known_ceilings import keep_known
from tests.evaluation.test_sweep import COMMAND, plan, seen_or_ended

JOB = (sys.executable, str(Path(__file__).parent / "ceilings_stand_in.py"))


@pytest.fixture(autouse=True)
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A line for every time that ceilings are asked for."""
    path = tmp_path / "asked.txt"
    path.touch()
    monkeypatch.setenv("CEILINGS_LOG", str(path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(sweep, "measure", planted_noise.planted)
    return path


def one_cell() -> SweepPlan:
    return plan(axes={"scheme": ["bnb-nf4"]}, probe_s=0, confirm=0)


def swept(store: Store, said: list[str]) -> SweepRecord:
    def tell(stage: str, _fraction: float | None, message: str) -> None:
        said.append(f"{stage}: {message}")

    host = Host(detect(), tell=tell, command=COMMAND, job_command=JOB)
    return asyncio.run(race(store, begin(store, one_cell(), host.hardware), host))


def test_they_are_measured_once_before_the_first_cell_and_every_run_has_them(asked: Path) -> None:
    said: list[str] = []
    with Store() as store:
        assert swept(store, said).state == "done"
        assert swept(store, []).state == "done"  # the next sweep knows them
        runs = store.list()
    assert asked.read_text() == "cpu 1\n"
    assert [len(run.hardware.ceilings) for run in runs] == [1, 1]
    assert said[0] == "ceilings: cpu: what it reaches at most, once"
    stages = [line.partition(":")[0] for line in said]
    assert stages.index("measure") > said.index("ceilings: cpu: memory bandwidth")


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_sweep_goes_on_without_those_that_fail_and_says_so(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEILINGS_END", end)
    said: list[str] = []
    with Store() as store:
        assert swept(store, said).state == "done"
        (run,) = store.list()
    assert (run.status, run.hardware.ceilings) == ("ok", ())
    assert f"without ceilings: cpu: It has {end}. The sweep goes on; its Runs have no MBU." in said


def test_a_sweep_that_is_cancelled_meanwhile_stops_and_can_be_resumed(
    asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEILINGS_END", "hangs")

    async def stopped(store: Store, sweep_id: str) -> None:
        measuring = asyncio.Event()

        def tell(stage: str, _fraction: float | None, message: str) -> None:
            if (stage, message) == ("ceilings", "cpu: memory bandwidth"):
                measuring.set()

        host = Host(detect(), tell=tell, command=COMMAND, job_command=JOB)
        task = asyncio.create_task(race(store, sweep_id, host))
        await seen_or_ended(measuring, task)
        task.cancel()
        with pytest.raises(Cancelled, match="stopped"):
            await task

    with Store() as store:
        sweep_id = begin(store, one_cell(), detect())
        asyncio.run(stopped(store, sweep_id))
        record = Sweeps(store).get(sweep_id)
    assert record is not None
    assert (record.state, record.is_resumable, record.run_ids) == ("cancelled", True, ())
    assert asked.read_text() == "cpu 1\n"


def machine_with_gpu(torch_cuda: str | None) -> Hardware:
    machine = detect()
    gpu = Device(id="cuda:0", kind="cuda", name="G", memory_total_bytes=10**11, memory_free_bytes=10**11)
    return machine.model_copy(update={"devices": (*machine.devices, gpu), "torch_cuda": torch_cuda})


def test_lacking_are_devices_that_torch_can_use_a_cpu_by_its_threads() -> None:
    recipes = [Recipe(device=device, threads=threads) for device in ("cpu", "cuda:0") for threads in (1, 2)]
    assert [device for device, _ in lacking_ceilings(recipes, machine_with_gpu("12.8"))] == ["cpu", "cpu", "cuda:0"]
    assert lacking_ceilings(recipes, machine_with_gpu(None)) == (("cpu", 1), ("cpu", 2))
    keep_known(threads=2)
    assert lacking_ceilings(recipes[:2], detect()) == (("cpu", 1),)


def test_their_time_is_counted_and_told() -> None:
    machine = detect()
    checked = check_cells(one_cell(), machine)
    lacking = lacking_ceilings((each.cell.recipe for each in runnable(checked)), machine)
    without = budget_of(one_cell(), checked, ())
    budget = budget_of(one_cell(), checked, (), ceilings=len(lacking))
    assert budget.seconds == without.seconds + CEILINGS_S
    assert "12 s measuring what the device reaches at most" in budget.in_words()
    assert "reaches at most" not in without.in_words()
