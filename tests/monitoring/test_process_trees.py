"""Real processes: a child that starts a grandchild, in its group or in a session of its own, and then ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from mcp_core.monitoring.fake_nvml import FakeDevice, FakeNvml
from mcp_core.monitoring.process_trees import CpuTimes, ProcessTrees, cpu_s_between, together
from mcp_core.monitoring.sample import ProcessProbe, Sample, WorkerProbe
from mcp_core.monitoring.series import readings_of
from mcp_core.monitoring.taker import Taker
from tests.strangers import SLEEP, SPIN, stranger

# A child that leads a session, as ours do, and starts a grandchild that begins with the given call.
_CHILD = """
import os, subprocess, sys
leave = {"group": None, "session": os.setsid, "other group": lambda: os.setpgid(0, 0)}[sys.argv[1]]
grandchild = subprocess.Popen([sys.executable, "-c", sys.argv[2]], preexec_fn=leave, stdout=subprocess.DEVNULL)
print("below", grandchild.pid, flush=True)
sys.stdin.readline()
"""


class Family:
    """Of a root (this test's stand-in for a worker) a child between, and a grandchild below."""

    def __init__(self, leaves: str, code: str) -> None:
        # The root stays and starts the one between, which is what ends.
        root = f"import subprocess, sys\nb = subprocess.Popen([sys.executable, '-c', {_CHILD!r}, *sys.argv[1:]])\n"
        root += "print('between', b.pid, flush=True)\nb.wait()\nimport time\ntime.sleep(60)"
        self.process = subprocess.Popen(
            [sys.executable, "-c", root, leaves, code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.root = self.process.pid
        said = dict(self.process.stdout.readline().split() for _ in range(2))
        self.between, self.below = int(said["between"]), int(said["below"])

    def end_between(self) -> None:
        """Until nobody is the grandchild's parent that was."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        _wait_until(lambda: not psutil.pid_exists(self.between))

    def end(self) -> None:
        for pid in (self.below, self.between, self.root):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def family() -> Iterator[Callable[..., Family]]:
    made: list[Family] = []

    def make(leaves: str = "group", code: str = SLEEP) -> Family:
        made.append(Family(leaves, code))
        return made[-1]

    yield make
    for each in made:
        each.end()


def _wait_until(done: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end_s
        time.sleep(0.01)


@pytest.mark.parametrize("leaves", ["group", "session", "other group"])
def test_a_grandchild_is_the_roots_whatever_group_it_is_in(family, leaves):
    one = family(leaves)
    assert ProcessTrees().look([one.root])[one.root].pids == {one.root, one.between, one.below}


@pytest.mark.parametrize("leaves", ["group", "other group"])
def test_one_whose_parent_has_ended_is_found_by_the_group_or_session_that_the_root_leads(family, leaves):
    one = family(leaves)
    one.end_between()
    assert psutil.Process(one.below).ppid() != one.root
    assert ProcessTrees().look([one.root])[one.root].pids == {one.root, one.below}


def test_one_that_left_the_session_too_is_kept_when_it_was_seen_before(family):
    one, trees = family("session"), ProcessTrees()
    trees.look([one.root])
    one.end_between()
    assert one.between in trees.look([one.root])[one.root].pids  # it held what it held until just now
    assert trees.look([one.root])[one.root].pids == {one.root, one.below}
    other = family()
    assert trees.look([one.root, other.root])[one.root].pids == {one.root, one.below}


def test_strangers_and_siblings_are_not_the_roots(family):
    one, other = family(), family()
    with stranger() as pid:
        tree = ProcessTrees().look([one.root])[one.root]
    assert not tree.pids & {pid, other.root, other.below, os.getpid()}


def test_of_two_roots_the_nearer_one_has_it(family):
    one, other = family("session"), family()
    found = ProcessTrees().look([os.getpid(), one.root])
    assert found[one.root].pids == {one.root, one.between, one.below}
    assert found[os.getpid()].pids >= {os.getpid(), other.root, other.below}
    assert not found[os.getpid()].pids & found[one.root].pids


def test_a_root_that_comes_later_takes_over_what_it_started(family):
    one, trees = family("session"), ProcessTrees()
    assert one.below in trees.look([os.getpid()])[os.getpid()].pids
    found = trees.look([os.getpid(), one.root])
    assert one.below in found[one.root].pids
    assert one.below not in found[os.getpid()].pids


def test_resident_memory_is_that_of_all_until_the_root_ends(family):
    one, trees = family("session"), ProcessTrees()

    def settled() -> bool:  # an interpreter that still starts grows
        found = trees.look([one.root])[one.root].resident_bytes
        held = [psutil.Process(pid).memory_info().rss for pid in (one.root, one.between, one.below)]
        return found == sum(held) and min(held) > 1e6

    _wait_until(settled)
    one.process.kill()
    one.process.wait()
    left = trees.look([one.root])[one.root]
    assert (left.resident_bytes, together({one.root: left})) == (None, None)
    assert one.below in left.pids  # what it holds is no stranger's because of that


def test_what_nobody_has_ever_started_is_an_empty_tree():
    found = ProcessTrees().look([2**22 + 1])[2**22 + 1]
    assert (found.pids, found.resident_bytes, found.times) == (frozenset(), None, {})


def test_time_is_counted_once_whether_its_process_lives_is_new_or_has_ended():
    before = {"root": CpuTimes(5, 100), "ends": CpuTimes(40, 2), "lost": CpuTimes(7, 0)}
    # The root used 1, a new one 0.5; one with 42 ended with 45, another began and ended with 0.25 in between.
    now = {"root": CpuTimes(6, 100 + 45 + 0.25), "new": CpuTimes(0.5, 0)}
    assert cpu_s_between(before | {"lost": CpuTimes(0, 0)}, now) == 1 + 0.5 + 3 + 0.25
    # Nobody of ours waited for the lost one: its time is missing, and no other's is counted for it.
    assert cpu_s_between({"root": CpuTimes(5, 0), "lost": CpuTimes(900, 0)}, {"root": CpuTimes(6, 0)}) == 1


def test_the_time_of_a_grandchild_that_has_ended_is_in_its_roots():
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    waits = f"""
import subprocess, sys
sys.stdin.readline()
subprocess.run([sys.executable, "-c", {burn!r}])
print(flush=True)
sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as root:
        trees = ProcessTrees()
        before = trees.look([root.pid])[root.pid].times
        root.stdin.write("\n")
        root.stdin.flush()
        root.stdout.readline()
        after = trees.look([root.pid])[root.pid].times
        root.stdin.write("\n")
    assert 0.45 < cpu_s_between(before, after) < 2


def _takes(taker: Taker, root: int) -> Iterator[Sample]:
    taker.open()
    while True:
        yield taker.take((WorkerProbe("w", root, "one", None),), (ProcessProbe(os.getpid(), "this"),))


def test_device_memory_of_an_own_grandchild_is_the_workers_and_a_strangers_is_others(family):
    one, other = family("session"), family()
    with stranger() as pid:
        held = {one.root: 1, one.below: 77_000, other.below: 20, pid: 3_000, 2**22 + 1: 500}
        sample = next(_takes(Taker(FakeNvml([FakeDevice(processes=(held,))])), one.root))
    assert sample.workers[0].device_bytes == {0: 77_001}
    assert readings_of(sample).gauges["gpu0.others_memory_bytes"] == 3_500
    assert readings_of(sample).gauges["w.device_bytes"] == 77_001


def test_cpu_time_of_an_own_grandchild_is_the_workers_alone(family):
    one = family("session", SPIN)
    takes, spinning, began_s = (
        _takes(Taker(FakeNvml(reason="none")), one.root),
        psutil.Process(one.below),
        time.time(),
    )
    assert next(takes).others_cores is None
    before_s = spinning.cpu_times().user
    _wait_until(lambda: spinning.cpu_times().user > before_s + 0.3)
    spent_s, sample = spinning.cpu_times().user - before_s, next(takes)
    used_s = sample.workers[0].cpu_percent / 100 * (time.time() - began_s)
    assert used_s >= spent_s - 0.02
    assert sample.processes[0].cpu_percent < sample.workers[0].cpu_percent
    assert sample.others_cores is not None


def test_a_look_reads_little_of_a_machine_full_of_strangers(family):
    one, trees = family(), ProcessTrees()
    trees.look([one.root])
    before_s = time.thread_time()
    for _ in range(50):
        trees.look([one.root])
    assert (time.thread_time() - before_s) / 50 < 0.005
