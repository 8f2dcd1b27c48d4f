from __future__ import annotations

import os
import subprocess
import sys

import psutil

from mcp_core import hardware
from mcp_core.hardware import Hardware, detect, physical_cores
from mcp_core.monitoring.nvml import NvmlDevice


def test_this_machine():
    machine = detect()
    cpu = machine.device("cpu")
    assert cpu is not None
    assert cpu.memory_total_bytes == psutil.virtual_memory().total
    assert machine.cores == len(os.sched_getaffinity(0))
    assert 1 <= physical_cores() <= machine.cores
    assert machine.libraries["torch"].startswith("2.")
    assert Hardware.model_validate_json(machine.model_dump_json()) == machine


def test_torch_cuda_is_what_torch_says_without_importing_it():
    code = (
        "import sys; from mcp_core.hardware import detect; found = detect().torch_cuda; "
        "assert 'torch' not in sys.modules; import torch; assert found == torch.version.cuda, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nvml_devices_become_cuda_devices(monkeypatch):
    gpu = NvmlDevice(
        index=0,
        uuid="GPU-1",
        name="Test GPU",
        memory_total_bytes=80,
        memory_used_bytes=30,
        compute_capability=(9, 0),
        **dict.fromkeys(
            (
                "utilization_percent",
                "memory_utilization_percent",
                "power_w",
                "power_limit_w",
                "temperature_c",
                "sm_clock_mhz",
                "memory_clock_mhz",
                "throttle_reasons",
                "energy_mj",
            )
        ),
        process_memory_bytes={},
    )
    monkeypatch.setattr(hardware, "read_devices", lambda: ("580.1", (gpu,)))
    monkeypatch.setattr(hardware, "_torch_cuda", lambda: "13.0")
    machine = detect()
    device = machine.device("auto")
    assert device is not None
    assert (device.id, device.memory_free_bytes, machine.driver) == ("cuda:0", 50, "580.1")
    assert machine.device("cuda:1") is None
