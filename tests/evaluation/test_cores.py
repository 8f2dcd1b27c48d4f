from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from mcp_core.evaluation.cores import OthersLoad, pinned, usable_cores
from tests.strangers import SPIN, stranger

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins on Linux only")
needs_two = pytest.mark.skipif(len(usable_cores()) < 2, reason="needs 2 cores")


@needs_two
def test_worker_and_generator_get_cores_of_their_own_and_everything_is_restored(sleeper):
    mine, theirs = os.sched_getaffinity(0), os.sched_getaffinity(sleeper)
    with pinned(sleeper, 1) as reason:
        assert reason is None
        assert len(os.sched_getaffinity(sleeper)) == 1
        assert os.sched_getaffinity(0) == mine - os.sched_getaffinity(sleeper)
    assert os.sched_getaffinity(0) == mine
    assert os.sched_getaffinity(sleeper) == theirs


@needs_two
def test_an_error_inside_restores_too(sleeper):
    mine = os.sched_getaffinity(0)
    with pytest.raises(RuntimeError, match="inside"), pinned(sleeper, 1):
        raise RuntimeError("inside")
    assert os.sched_getaffinity(0) == mine


def test_threads_that_fill_the_machine_are_not_pinned(sleeper):
    mine = os.sched_getaffinity(0)
    with pinned(sleeper, len(mine)) as reason:
        assert "not pinned" in reason
        assert os.sched_getaffinity(0) == mine


@needs_two
def test_a_worker_that_has_ended_is_a_reason_and_no_crash():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    mine = os.sched_getaffinity(0)
    with pinned(process.pid, 1) as reason:
        assert "could not be pinned" in reason
    assert os.sched_getaffinity(0) == mine


@needs_two
def test_load_of_others_is_seen_and_our_own_is_not():
    """A planted burner: all of it is others' load, unless it is named as ours."""
    with stranger(SPIN) as burner:
        counted, named = OthersLoad([os.getpid()]), OthersLoad([os.getpid(), burner])
        begun = time.process_time()
        time.sleep(1.5)
        assert time.process_time() - begun < 0.2
        difference = counted.read() - named.read()
        assert 0.1 < difference < 1.1


@needs_two
def test_load_of_what_ours_started_is_ours():
    """A planted burner below a child of ours: others' load only for one who did not start it."""
    nested = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {SPIN!r}])"
    with stranger() as other, subprocess.Popen([sys.executable, "-c", nested], start_new_session=True) as child:
        try:
            ours, theirs = OthersLoad([os.getpid()]), OthersLoad([other])
            time.sleep(1.5)
            difference = theirs.read() - ours.read()
        finally:
            os.killpg(child.pid, signal.SIGKILL)
    assert 0.1 < difference < 1.1


def test_no_load_is_known_of_a_process_that_has_ended():
    assert OthersLoad([2**22 + 1]).read() is None
