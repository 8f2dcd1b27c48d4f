from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

# In a process of its own: the setting is the process's.
SCENE = """
import os
import sys
from pathlib import Path

import torch

from mcp_core.memory.host_allocator import return_large_blocks

MIB = 2**20


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def freed_by_every_other_block():
    blocks = [torch.ones(4 * MIB, dtype=torch.uint8) for _ in range(20)]
    before = resident_bytes()
    del blocks[::2]
    return (before - resident_bytes()) / MIB


if sys.argv[1] == "asked":
    return_large_blocks()
freed_by_every_other_block()  # without asking, glibc adapts to the first large block that is freed
print(freed_by_every_other_block())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_blocks_leave_the_process_only_once_asked() -> None:
    assert freed_mib("not asked") < 20
    assert freed_mib("asked") == pytest.approx(40, rel=0.1)


def freed_mib(asked: str) -> float:
    result = subprocess.run([sys.executable, "-c", SCENE, asked], check=True, capture_output=True, text=True)
    return float(result.stdout)


# Prompts of 40 lengths through one bf16 layer: the kernels of all of them, or of the last few.
_KERNELS = """
import sys

from mcp_core.memory.host_allocator import bound_kernel_caches, return_large_blocks
from mcp_core.serving.process_memory import read_memory

return_large_blocks()
if sys.argv[1] == "asked":
    bound_kernel_caches()
import torch

layer = torch.nn.Linear(512, 512, bias=False, dtype=torch.bfloat16)


@torch.inference_mode()
def run(lengths):
    for length in lengths:
        layer(torch.zeros(length, 512, dtype=torch.bfloat16))


torch.set_num_threads(1)
run(range(17, 80))
before = read_memory().resident_bytes
run(range(80, 280))
print((read_memory().resident_bytes - before) / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
def test_kernels_of_past_shapes_are_forgotten_only_once_asked() -> None:
    assert grown_mib("not asked") > 20
    assert grown_mib("asked") < 10


def grown_mib(asked: str) -> float:
    result = subprocess.run([sys.executable, "-c", _KERNELS, asked], check=True, capture_output=True, text=True)
    return float(result.stdout)
