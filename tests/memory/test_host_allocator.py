from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import torch

from mcp_core.memory.host_allocator import large_blocks_returned

MIB = 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def freed_by_every_other_block() -> int:
    """Allocate 20 blocks of 4 MiB, free every other one, and see how much leaves the process."""
    blocks = [torch.ones(4 * MIB, dtype=torch.uint8) for _ in range(20)]
    before = resident_bytes()
    del blocks[::2]
    return before - resident_bytes()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_blocks_leave_the_process_only_inside() -> None:
    with large_blocks_returned():
        assert freed_by_every_other_block() == pytest.approx(40 * MIB, rel=0.1)
    assert freed_by_every_other_block() < 20 * MIB
