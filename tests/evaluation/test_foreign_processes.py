"""Device memory and CPU time of another engine's processes, started as it is for a Run and for a confirmation."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from mcp_core.child_process import ChildProcess
from mcp_core.evaluation.run_recorder import RunRecorder
from mcp_core.monitoring.fake_nvml import FakeDevice, FakeNvml
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.recipe import ModelRef, Recipe, ShapeSpec
from mcp_core.serving.client import ServerClient
from mcp_core.serving.supervisor import Supervisor
from tests.engines.conftest import engine_python, gpu  # noqa: F401 - fixtures
from tests.strangers import SLEEP, stranger

SHAPE = ShapeSpec(layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2, vocab=400, context=64)
RECIPE = Recipe(model=ModelRef(source="shape", id="custom", shape=SHAPE), engine="vllm", device="cuda:0", threads=1)
# As vLLM's EngineCore: below the server, in a session of its own.
SERVER = f"""
import pathlib, subprocess, sys, time
core = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
pathlib.Path("core").write_text(str(core.pid))
core.wait()
"""


async def recorded(client: ServerClient | None, pid: int | None, held: dict[int, int]) -> RunTelemetry:
    """Three samples of a device that these processes hold memory of."""
    nvml = FakeNvml([FakeDevice(processes=(held,))])
    async with RunRecorder(client, pid, "m", asks=client is not None, interval_s=0.2, nvml=nvml) as recorder:
        await asyncio.sleep(0.3)
    return recorder.telemetry


@pytest.mark.usefixtures("gpu", "engine_python")
def test_a_foreign_workers_core_is_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = tmp_path / "pids.json"
    monkeypatch.setenv("STAND_IN_PIDS", str(pids))

    async def main(other: int) -> RunTelemetry:
        supervisor = Supervisor()
        try:
            worker = await supervisor.start(RECIPE)
            _, core = json.loads(pids.read_text())
            assert core != worker.pid
            return await recorded(worker.client, worker.pid, {core: 77_000, other: 3_000})
        finally:
            await supervisor.close()

    with stranger() as pid:
        found = asyncio.run(main(pid))
    assert found.highest("gpu0.others_memory_bytes") == 3_000
    assert found.highest("worker.device_bytes") == 77_000
    assert found.highest("worker.resident_bytes") > 30e6  # three interpreters
    assert found.mean("host.others_cores") is not None


def test_an_exported_server_that_this_process_started_is_no_strangers(tmp_path: Path) -> None:
    async def main(other: int) -> RunTelemetry:
        order = {"command": [sys.executable, "-c", SERVER], "environment": {}, "folder": str(tmp_path)}
        command = (sys.executable, "-m", "mcp_core.serving.kept_server")
        child = await ChildProcess.spawn(command, json.dumps(order))
        try:
            core = await asyncio.to_thread(_core, tmp_path / "core")
            found = await recorded(None, None, {core: 77_000, other: 3_000})
            os.kill(core, signal.SIGKILL)
            return found
        finally:
            child.let_go()
            await child.ends_within(10)
            await child.wait()
            await child.close()

    with stranger() as pid:
        found = asyncio.run(main(pid))
    assert found.highest("gpu0.others_memory_bytes") == 3_000
    assert found.mean("host.others_cores") is not None


def _core(file: Path) -> int:
    end_s = time.monotonic() + 20
    while not file.exists() or not file.read_text():
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return int(file.read_text())
