"""watch: samples name this app and its jobs, series and events come from the same watch."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from mcp_core.monitoring.fake_nvml import FakeDevice, FakeNvml
from mcp_core.monitoring.sample import WorkerProbe
from mcp_core.presets import bundled
from mcp_core.views import WorkerView
from mcp_core.watch import Watch


def test_samples_series_and_events():
    began_s = time.time()
    watch = Watch(lambda: (WorkerProbe("w1", None, "Tiny", None),), FakeNvml([FakeDevice()]))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as job:
        worker = WorkerView("w1", bundled(), "Tiny", "ready", None, None, "cpu")
        watch.look([worker], [], [(job.pid, "short-chat")])
        watch.start()
        while not watch.samples(60) and time.time() < began_s + 10:
            time.sleep(0.01)
        watch.stop()
        job.communicate(b"\n")
    found = {each.title: each for each in watch.samples(60)[0].processes}
    assert found["MCP (this app)"].pid == os.getpid()
    assert found["job: short-chat"].resident_bytes > 1e6
    window = watch.history(began_s, time.time())
    assert window.labels == {"host": "Host", "gpu0": FakeDevice().name, "w1": "Tiny"}
    assert window.mean("gpu0.power_w")[0][1] == 70
    assert [event.kind for event in watch.events(began_s)] == ["load", "ready"]
