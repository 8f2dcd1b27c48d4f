"""The script for a lent host: names in its steps exist, and neither a failure nor a hang stops a lane."""

from __future__ import annotations

import os
import shlex
import tarfile
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from tests.bench import footprint, gpu, h100, why
from tests.bench.h100 import LANES, Host, Step

ROOT = Path(h100.__file__).parents[2]
STEPS = [step for lane in LANES.values() for step in lane]
FIGURES = (
    *(f"decode b1 {kind}" for kind in ("off", "graphs", "compiled", "autotuned")),
    *(f"batch {count}" for count in (1, 4, 16, 64)),
    *(f"generate_batch level {level}" for level in (0, 1)),
)
NAMES = {
    ("footprint.py", "--case"): footprint.CUDA,
    ("gpu.py", "--case"): gpu.CASES,
    ("why.py", "--case"): why.CASES["cuda"],
    ("engine_gpu.py", "--part"): ("ceilings", "peers", "prefix", "prefill", "decode", "together", "crossover"),
}


def test_every_step_has_its_name():
    assert len({step.name for step in STEPS}) == len(STEPS)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_what_a_step_names_is_there(step):
    words = shlex.split(step.command.replace("(", " ").replace(")", " ").replace(";", " "))
    for word in words:
        assert not word.startswith("tests/") or (ROOT / word).exists(), word
    script = next((Path(word).name for word in words if word.startswith("tests/bench/")), "")
    for option, value in pairwise(words):
        names = NAMES.get((script, option))
        assert names is None or value in names, value
        if option == "--only":
            assert any(figure.startswith(value) for figure in FIGURES), value


@pytest.fixture
def lane(tmp_path):
    """Runs steps in a thread of their own: a lane keeps to its cores."""

    def run(*steps, seconds=60.0, results="results"):
        host = Host(seconds, tmp_path / results)
        thread = threading.Thread(target=host.run_lane, args=(0, os.sched_getaffinity(0), steps))
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        return host

    return run


def test_a_lane_goes_on_after_a_failure_and_a_hang(lane):
    last = Step("last", "echo $CUDA_VISIBLE_DEVICES $MCP_HOME > $R/said", 1)
    host = lane(Step("fails", "exit 3", 1), Step("hangs", "sleep 60", 1, most_s=1), last)
    done = {path.name: path.read_text().split()[0] for path in host.results.glob("done.*")}
    assert done == {"done.fails": "3", "done.hangs": "late", "done.last": "0"}
    assert (host.results / "said").read_text().split() == ["0", f"{host.results}-home-0"]


def test_what_time_cut_off_is_done_again_and_what_is_done_is_not(lane):
    slow = Step("slow", "echo x >> $R/slow; sleep 60", 1)
    host = lane(Step("done", "echo x >> $R/done", 1), slow, Step("never", "echo x >> $R/never", 30), seconds=8)
    assert {path.name for path in host.results.glob("done.*")} == {"done.done"}
    lane(Step("done", "echo x >> $R/done", 1), Step("slow", "echo x >> $R/slow", 1))
    assert (host.results / "done").read_text() == "x\n"
    assert (host.results / "slow").read_text() == "x\nx\n"
    assert not (host.results / "never").exists()


def test_a_fresh_host_goes_on_from_what_was_packed(lane, tmp_path):
    host = lane(Step("one", "echo x >> $R/one", 1))
    host.pack(tmp_path)
    with tarfile.open(tmp_path / "results.tgz") as packed:
        assert "results/logs/one.log" in packed.getnames()
    h100.resume(tmp_path / "results.tgz", tmp_path / "fresh")
    again = lane(Step("one", "echo x >> $R/one", 1), Step("two", "true", 1), results="fresh")
    assert (again.results / "one").read_text() == "x\n"
    assert (again.results / "done.two").exists()


def test_each_lane_has_a_gpu_and_its_own_cores():
    (_, mine, engine), (_, others, product) = h100.lanes_of(["engine", "product"], 2)
    assert not mine & others
    assert (engine, product) == (LANES["engine"], LANES["product"])
    ((_, _, both),) = h100.lanes_of(["engine", "product"], 1)
    assert both == LANES["engine"] + LANES["product"]
