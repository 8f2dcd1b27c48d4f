from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from mcp_core import devices, paths
from mcp_core.errors import Busy

_HOLD = """
import sys
from mcp_core import devices
devices.acquire("cpu", sys.argv[1], "the other one")
print("held", flush=True)
sys.stdin.read()
"""


def other_process(purpose: str) -> subprocess.Popen[str]:
    """A process that holds the CPU until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, purpose], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    return process


def test_chats_share_and_a_measurement_is_alone() -> None:
    first = devices.acquire("cpu", "chat", "model A")
    second = devices.acquire("cpu", "chat", "model B")
    with pytest.raises(Busy, match=r"model A \(loaded, process \d+\), model B"):
        devices.acquire("cpu", "measure", "bench")
    second.release()
    bench = devices.acquire("cpu", "measure", "bench of A", besides={first.holder.id})
    for purpose in ("chat", "measure"):
        with pytest.raises(Busy, match="bench of A"):
            devices.acquire("cpu", purpose, "late", besides={first.holder.id})
    bench.release()
    bench.release()
    assert [holder.label for holder in devices.holders("cpu")] == ["model A"]


def test_devices_do_not_know_each_other() -> None:
    devices.acquire("cuda:0", "measure", "bench")
    devices.acquire("cuda:1", "measure", "bench")
    assert devices.holders("cpu") == ()


def test_a_dead_holder_is_dropped_and_a_living_one_is_not() -> None:
    with other_process("chat") as other:
        with pytest.raises(Busy, match=rf"the other one \(loaded, process {other.pid}\)"):
            devices.acquire("cpu", "measure", "bench")
        other.kill()
        other.wait()
        devices.acquire("cpu", "measure", "bench").release()
    assert devices.holders("cpu") == ()


def test_a_process_id_that_was_used_again_is_another_process() -> None:
    lease = devices.acquire("cpu", "measure", "bench")
    file = paths.home("locks") / "cpu.json"
    rows = json.loads(file.read_text())
    rows[0]["process_started_s"] -= 100
    file.write_text(json.dumps(rows))
    assert devices.holders("cpu") == ()
    assert devices.is_alive(os.getpid(), lease.holder.process_started_s)


def test_the_line_is_visible_and_in_order_and_keeps_nobody_out() -> None:
    first = devices.wait_in_line("cpu", "sweep")
    devices.wait_in_line("cpu", "bench")
    assert [each.label for each in devices.waiters("cpu")] == ["sweep", "bench"]
    assert devices.holders("cpu") == ()
    devices.acquire("cpu", "measure", "now").release()
    first.release()
    assert [each.label for each in devices.waiters("cpu")] == ["bench"]


def test_a_second_app_on_the_same_home_is_seen() -> None:
    with devices.register_app("MCP") as mine:
        assert [app.id for app in devices.app_instances()] == [mine.holder.id]
        with devices.register_app("MCP"):
            assert len(devices.app_instances()) == 2
    assert devices.app_instances() == ()


def test_only_one_of_many_threads_gets_it() -> None:
    got: list[str] = []

    def race(name: str) -> None:
        try:
            devices.acquire("cpu", "measure", name)
        except Busy:
            return
        got.append(name)

    threads = [threading.Thread(target=race, args=(str(index),)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


@pytest.mark.parametrize("wreck", ["", "{", "[1]", '[{"pid": 1}]'])
def test_a_wrecked_file_is_started_anew(wreck: str) -> None:
    (paths.home("locks") / "cpu.json").write_text(wreck)
    devices.acquire("cpu", "chat", "model")
    assert [holder.label for holder in devices.holders("cpu")] == ["model"]


def test_a_measurement_lets_in_what_belongs_to_it() -> None:
    assert devices.leases_of(os.getpid()) == ()
    bench = devices.acquire("cpu", "measure", "drift of A")
    devices.wait_in_line("cpu", "the next one")
    assert devices.leases_of(os.getpid()) == (bench.holder.id,)
    assert devices.leases_of(1) == ()
    devices.acquire("cpu", "chat", "its worker", besides=devices.leases_of(os.getpid()))
    with pytest.raises(Busy, match="drift of A"):
        devices.acquire("cpu", "chat", "a stranger")
