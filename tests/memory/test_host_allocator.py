from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest
import torch

# Both settings are a process's own, so what is compared happens in two processes, one that asked for them and one
# that did not.
_SCENE = """
import json
import sys

asked = sys.argv[1] == "asked"
from mcp_core.memory.host_allocator import bound_kernel_caches, return_large_blocks

if asked:
    bound_kernel_caches()
import torch

from mcp_core.serving.process_memory import read_memory

MIB = 2**20


def resident_mib():
    return read_memory().resident_bytes / MIB


def freed_by_every_other_block():
    blocks = [torch.ones(4 * MIB, dtype=torch.uint8) for _ in range(20)]
    before = resident_mib()
    del blocks[::2]
    return before - resident_mib()


@torch.inference_mode()
def grown_by(lengths):
    before = resident_mib()
    for length in lengths:
        layer(torch.zeros(length, 512, dtype=torch.bfloat16))
    return resident_mib() - before


if asked:
    return_large_blocks()
freed_by_every_other_block()  # without asking, glibc adapts to the first large block that is freed
freed = freed_by_every_other_block()
return_large_blocks()  # the kernels alone are looked at
torch.set_num_threads(1)
layer = torch.nn.Linear(512, 512, bias=False, dtype=torch.bfloat16)
grown_by(range(17, 80))
print(json.dumps({"freed": freed, "grown": grown_by(range(80, 180))}))
"""


@pytest.fixture(scope="module")
def found_mib() -> dict[str, dict[str, float]]:
    return {asked: _run(asked) for asked in ("asked", "not asked")}


def _run(asked: str) -> dict[str, float]:
    result = subprocess.run([sys.executable, "-c", _SCENE, asked], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(result.stdout)
    return found


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_blocks_leave_the_process_only_once_asked(found_mib: dict[str, dict[str, float]]) -> None:
    assert found_mib["not asked"]["freed"] < 20
    assert found_mib["asked"]["freed"] == pytest.approx(40, rel=0.1)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
def test_kernels_of_past_shapes_are_forgotten_only_once_asked(found_mib: dict[str, dict[str, float]]) -> None:
    """A hundred prompt lengths through one bf16 layer: the kernels of all of them, or of the last few."""
    assert found_mib["not asked"]["grown"] > 20
    assert found_mib["asked"]["grown"] < 10


_STEPS = """
import resource, sys
from mcp_core.memory.host_allocator import return_large_blocks, reuse_large_blocks
import torch
return_large_blocks()
reuse_large_blocks(sys.argv[1])
packed = torch.ones(2**20, dtype=torch.int8)
for _ in range(40):
    packed.bfloat16()  # 2 MiB, freed at once; the first ones find their places
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    packed.bfloat16()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_what_a_scheme_unpacks_at_every_step_is_no_new_memory_each_time() -> None:
    def faults(scheme: str) -> int:
        command = [sys.executable, "-c", _STEPS, scheme]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("none") > 20 * 400  # a page each 4 KiB
    assert faults("torchao-int8-weight-only") < 400
