from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import time
from pathlib import Path

import pytest

from mcp_core import devices
from mcp_core.child_process import ChildProcess, lines_of, oom_kills, signal_name


def lines(*pieces: bytes) -> list[str]:
    async def run() -> list[str]:
        reader = asyncio.StreamReader()
        for piece in pieces:
            reader.feed_data(piece)
        reader.feed_eof()
        return [line async for line in lines_of(reader)]

    return asyncio.run(run())


def test_lines_end_at_newlines_and_carriage_returns_and_at_the_end() -> None:
    assert lines(b"a\nb\r\nc\r10%\r20%\n\nlast") == ["a", "b", "c", "10%", "20%", "last"]


def test_a_broken_character_does_not_end_the_log() -> None:
    assert lines(b"caf\xc3", b"\xa9 \xff\n") == ["café �"]


def test_a_line_without_end_is_cut() -> None:
    found = lines(b"x" * 2_500_000)
    assert len(found) > 1
    assert sum(map(len, found)) == 2_500_000


def test_oom_kills_are_counted_where_the_kernel_tells(tmp_path: Path) -> None:
    host, group = tmp_path / "vmstat", tmp_path / "memory.events"
    host.write_text("pgfault 12\noom_kill 3\nnr_x 1\n")
    group.write_text("oom 9\noom_kill 2\noom_group_kill 7\n")
    assert oom_kills((host, group, tmp_path / "missing")) == 5


def test_ends_are_named() -> None:
    assert [signal_name(code) for code in (0, 1, -9, -11, -200)] == [
        "exit code 0",
        "exit code 1",
        "signal SIGKILL",
        "signal SIGSEGV",
        "signal 200",
    ]


def test_a_grandchild_does_not_outlive_the_group() -> None:
    code = "import subprocess,sys; p=subprocess.Popen(['sleep','60']); print(p.pid, flush=True)"

    async def run() -> int:
        child = await ChildProcess.spawn((sys.executable, "-c", code), "{}")
        pid = int(await anext(lines_of(child.stdout)))
        assert await child.wait() == 0
        await child.close()
        return pid

    pid = asyncio.run(run())
    end = time.monotonic() + 5
    while devices.process_started_s(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert devices.process_started_s(pid) is None


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="no such file on this system")
def test_the_child_is_the_first_to_go_and_holds_no_descriptor_of_ours() -> None:
    code = (
        "import os, sys; sys.stdin.readline();"
        "print(open('/proc/self/oom_score_adj').read().strip(), os.path.exists('/proc/self/fd/' + sys.argv[1]))"
    )

    async def run(descriptor: int) -> str:
        child = await ChildProcess.spawn((sys.executable, "-c", code, str(descriptor)), "{}")
        said = await anext(lines_of(child.stdout))
        await child.terminate(1.0)
        await child.close()
        return said

    with Path(os.devnull).open() as ours:
        high = fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD_CLOEXEC, 200)
        assert asyncio.run(run(high)) == "1000 False"
        os.close(high)
