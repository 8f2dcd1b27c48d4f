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
    query = [
        "nvidia-smi",
        f"--query-gpu={','.join(names)}",
        "--format=csv,noheader,nounits",
        f"--id={read_devices()[1][0].uuid}",
    ]
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


def test_the_energy_of_a_days_series_is_power_times_time(burning):
    """What the sampler adds up second by second, against the mean power over the same seconds."""
    sampler = Sampler(tuple)
    began_s = time.time()
    sampler.start()
    time.sleep(12)
    sampler.stop()
    window = sampler.history(began_s, time.time())
    powers = [value for _, value in window.mean("gpu0.power_w") if value is not None]
    joules = window.total("gpu0.energy_j")
    assert joules == pytest.approx(sum(powers) / len(powers) * (len(powers) - 1), rel=0.1)


def test_a_known_allocation_is_seen_on_the_device_and_by_process():
    size = 4 * 2**30
    code = f"""
import sys, torch
torch.zeros(1, device="cuda"); print("context", flush=True); input()
x = torch.zeros({size}, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize(); print("held", flush=True); input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        child.stdout.readline()
        before = read_devices()[1][0]
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        after = read_devices()[1][0]
        child.kill()
    assert after.memory_used_bytes - before.memory_used_bytes == pytest.approx(size, abs=64 * 2**20)
    if child.pid in after.process_memory_bytes:  # a container may hide processes
        grown = after.process_memory_bytes[child.pid] - before.process_memory_bytes[child.pid]
        assert grown == pytest.approx(size, abs=64 * 2**20)


def test_a_sample_of_the_real_nvml_takes_less_than_a_hundredth_of_its_second():
    sampler = Sampler(tuple)
    sampler._taker.open()
    sampler._sample_once()
    before_s = time.thread_time()
    for _ in range(50):
        sampler._sample_once()
    sampler._taker.close()
    assert (time.thread_time() - before_s) / 50 < 0.01
