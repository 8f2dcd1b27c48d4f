"""Ceilings: their arithmetic by a clock that is told, their figures against numpy's on this machine."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mcp_core import ceilings
from mcp_core.ceilings import Ceilings
from mcp_core.errors import InputError
from mcp_core.evaluation import ceilings_job
from mcp_core.evaluation.ceilings_job import Bench
from mcp_core.hardware import detect
from mcp_core.jobs import Job
from mcp_core.recipe import Recipe
from mcp_core.studies import Studies

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def told_clock(step_s: float) -> Bench:
    """Everything that is timed takes ``step_s``."""
    ticks = itertools.count()
    return Bench(CPU, clock=lambda: next(ticks) * step_s)


def test_rates_are_amounts_over_time():
    bench = told_clock(0.5)
    assert bench.read_bytes_s(MIB) == 2 * MIB
    assert bench.copy_bytes_s(MIB) == 4 * MIB  # read and written
    assert bench.matmul_flop_s("fp32") == 2 * 256**3 / 0.5
    assert bench.op_us() == pytest.approx(1000.0)  # 500 of them in 0.5 s
    assert bench.sync_us() == pytest.approx(0.5e6)


def test_the_best_try_counts_and_the_first_does_not():
    ends = iter((0.0, 9.0, 10.0, 12.0, 20.0, 21.0, 30.0, 35.0))  # 9 s to warm up, then 2, 1 and 5 s
    bench = Bench(CPU, clock=lambda: next(ends), tries=3)
    assert bench.best_s(lambda: None) == 1.0


def test_products_grow_until_one_takes_long(monkeypatch):
    monkeypatch.setattr(ceilings_job, "_SIDES", {"cpu": (8, 16, 32)})
    # 0.01 s each: too short to end the growth, so that the largest product is the best.
    assert told_clock(0.01).matmul_flop_s("fp32") == pytest.approx(2 * 32**3 / 0.01)


def shortest_s(work) -> float:
    """Of five tries or more, for half a second: five products of a few ms can all meet one other process."""
    times, until_s = [], time.perf_counter() + 0.5
    while len(times) < 5 or time.perf_counter() < until_s:
        began_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_s)
    return min(times)


def test_bandwidth_is_what_numpy_copies_with():
    source = np.ones(32 * MIB, dtype=np.float32)
    target = np.empty_like(source)
    numpy_bytes_s = 2 * source.nbytes / shortest_s(lambda: np.copyto(target, source))
    bench = Bench(CPU, tries=3)
    for found in (bench.copy_bytes_s(source.nbytes), bench.read_bytes_s(source.nbytes)):
        assert numpy_bytes_s / 4 < found < numpy_bytes_s * 4


def test_products_are_as_fast_as_numpys():
    side = 512
    left = np.ones((side, side), dtype=np.float32)
    numpy_flop_s = 2 * side**3 / shortest_s(lambda: left @ left)  # on as many threads as numpy takes
    found = Bench(CPU, tries=3).matmul_flop_s("fp32")
    assert numpy_flop_s / 6 < found < numpy_flop_s * 6


def job(tmp_path: Path, device: str = "cpu") -> Job:
    return Job(tmp_path, {"device": device, "threads": 1}, {})


def test_the_job_keeps_what_hardware_then_knows(tmp_path, monkeypatch):
    monkeypatch.setattr(ceilings_job, "_BUFFER_BYTES", {"cpu": MIB})
    monkeypatch.setattr(ceilings_job, "_SIDES", {"cpu": (32,)})
    assert detect().ceilings_of("cpu", 1) is None
    outcome = asyncio.run(ceilings_job.run(job(tmp_path)))
    found = Ceilings.model_validate(outcome.result)
    assert set(found.matmul_flop_s) == {"fp32", "bf16", "fp16", "int8"}  # a CPU has no TF32
    assert (found.device, found.threads, found.sync_us, found.driver) == ("cpu", 1, None, None)
    assert found.bandwidth_bytes_s == max(found.read_bytes_s, found.copy_bytes_s)
    machine = detect()
    assert machine.ceilings_of("auto", 1) == machine.ceilings_of("cpu", 1) == found
    assert machine.ceilings_of("cpu", 2) is None  # other threads, other ceilings


def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no cuda:7"):
        asyncio.run(ceilings_job.run(job(tmp_path, "cuda:7")))


def planted(**changes) -> Ceilings:
    values = {
        "device": "cuda:0",
        "device_name": "H100",
        "driver": "580",
        "torch": "2.13.0",
        "created": "2026-11-25T00:00:00Z",
        "read_bytes_s": 3e12,
        "copy_bytes_s": 2.99e12,
        "matmul_flop_s": {"bf16": 781e12},
        "op_us": 5.0,
    }
    return Ceilings.model_validate(values | changes)


def test_another_driver_or_torch_measures_anew(tmp_path):
    ceilings.keep(planted())
    ceilings.keep(planted(read_bytes_s=3.1e12))  # in place of the first
    assert [each.read_bytes_s for each in ceilings.kept(["H100"], "580", "2.13.0")] == [3.1e12]
    assert ceilings.kept(["H100"], "590", "2.13.0") == ceilings.kept(["H100"], "580", "2.14.0") == ()
    assert ceilings.kept(["A100"], "580", "2.13.0") == ()
    for wreck in (tmp_path / "home" / "ceilings").glob("*.json"):
        wreck.write_text("{")
    assert ceilings.kept(["H100"], "580", "2.13.0") == ()


def test_the_app_asks_for_the_device_and_threads_of_a_recipe():
    asked = []

    def submit(*arguments):
        asked.append(arguments)
        return "job-1"

    studies = Studies(submit, tuple, lambda: None)
    assert studies.start_ceilings(Recipe(dtype="fp32", threads=1)) == "job-1"
    ((verb, title, request, about),) = asked
    assert (verb, title, request) == ("ceilings", "ceilings of cpu", {"device": "cpu", "threads": 1})
    assert about == Recipe(device="cpu", threads=1)  # what holds the device: no model, no scheme
