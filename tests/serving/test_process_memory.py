from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mcp_core.serving.process_memory import ProcessMemory, _by_psutil, _parse, read_memory

MIB = 1024**2
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the counters are Linux's")


def measured() -> ProcessMemory:
    memory = read_memory()
    assert memory is not None
    return memory


def test_a_known_allocation_is_seen_as_resident_anonymous_memory() -> None:
    before = measured()
    held = bytearray(64 * MIB)
    held[::4096] = b"x" * len(held[::4096])  # touch every page
    after = measured()
    assert 60 * MIB < after.resident_bytes - before.resident_bytes < 80 * MIB
    assert before.anonymous_bytes is not None
    assert after.anonymous_bytes is not None
    assert 60 * MIB < after.anonymous_bytes - before.anonymous_bytes < 80 * MIB


# In a process of its own: a test run before may leave freed memory that the allocation is served from.
_PEAK = """
from mcp_core.serving.process_memory import read_memory, reset_peak, trim

MIB = 1024**2
assert reset_peak()
base = read_memory().resident_bytes
held = bytearray(64 * MIB)
held[::4096] = b"x" * len(held[::4096])
del held
remembered = read_memory().peak_bytes - base
trim()
assert reset_peak()
print(remembered / MIB, (read_memory().peak_bytes - base) / MIB)
"""


def test_the_peak_remembers_what_was_freed_until_it_is_reset() -> None:
    result = subprocess.run([sys.executable, "-c", _PEAK], check=True, capture_output=True, text=True)
    remembered, after_reset = map(float, result.stdout.split())
    assert 60 < remembered < 90
    assert after_reset < 30


def test_another_process_is_read_by_its_pid() -> None:
    code = "import sys; held = bytearray(64 * 1024**2); sys.stdout.write('r'); sys.stdout.flush(); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.read(1)
        memory = read_memory(child.pid)
        child.stdin.close()
    assert memory is not None
    assert 64 * MIB < memory.resident_bytes < 128 * MIB
    assert read_memory(child.pid) is None


def test_a_zombie_has_no_memory() -> None:
    assert _parse("Name:\tgone\nState:\tZ (zombie)\n") is None


def test_psutil_agrees_where_there_is_no_proc() -> None:
    fallback = _by_psutil(os.getpid())
    assert abs(fallback.resident_bytes - measured().resident_bytes) < 8 * MIB
    assert fallback.anonymous_bytes is None
