"""The sampler against nvidia-smi and physics: `pytest -m gpu`."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from mcp_core.monitoring.nvml import read_devices
from mcp_core.monitoring.sample import WorkerProbe
from mcp_core.monitoring.sampler import Sampler

pytestmark = pytest.mark.gpu

BURN = """
import sys, torch
x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
print("up", flush=True)
while not sys.stdin.closed:
    for _ in range(50): y = x @ x
    torch.cuda.synchronize()
"""


@pytest.fixture
def burning():
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        time.sleep(2)
        yield child
        child.kill()


def nvidia_smi(*names: str) -> list[float]:
    query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits", "--id=0"]
    return [float(value) for value in subprocess.check_output(query, text=True).split(",")]


def test_the_sampler_reads_what_nvidia_smi_reads(burning):
    sampler = Sampler(lambda: (WorkerProbe("w", burning.pid, "burn", None),), interval_s=0.5)
    sampler.start()
    time.sleep(3)
    used_mib, power_w, temperature_c, sm_mhz, utilization = nvidia_smi(
        "memory.used", "power.draw", "temperature.gpu", "clocks.sm", "utilization.gpu"
    )
    time.sleep(1)
    sample = sampler.window(60)[-1]
    sampler.stop()
    (device, *_) = sample.devices
    assert device.memory_used_bytes / 2**20 == pytest.approx(
        used_mib, abs=700
    )  # nvidia-smi leaves out the reserved
    assert device.power_w == pytest.approx(power_w, rel=0.25)
    assert device.temperature_c == pytest.approx(temperature_c, abs=5)
    assert device.sm_clock_mhz == pytest.approx(sm_mhz, rel=0.25)
    assert utilization > 80
    assert device.utilization_percent > 80
    assert sample.workers[0].resident_bytes > 100 * 2**20


def test_the_energy_counter_is_power_times_time(burning):
    powers, started = [], time.monotonic()
    first = read_devices()[1][0].energy_mj
    while time.monotonic() - started < 5:
        powers.append(read_devices()[1][0].power_w)
        time.sleep(0.05)
    elapsed = time.monotonic() - started
    joules = (read_devices()[1][0].energy_mj - first) / 1e3
    assert joules == pytest.approx(sum(powers) / len(powers) * elapsed, rel=0.1)
