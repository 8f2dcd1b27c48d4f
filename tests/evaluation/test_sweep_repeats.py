"""Confirmations that others disturbed, planted: made again with new prompts, at most twice, also after a kill."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import SweepRecord
from mcp_core.decision.sweeps import Sweeps
from mcp_core.evaluation import sweep
from mcp_core.evaluation.comparability import disturbance
from mcp_core.evaluation.new_sweep import begin
from mcp_core.evaluation.sweep import Host, race
from mcp_core.evaluation.sweep_repeats import MOST_REPEATS
from mcp_core.evaluation.sweep_table import SweepRow, sweep_rows
from mcp_core.hardware import detect
from mcp_core.sweep_plan import SweepPlan
from tests.evaluation import planted_noise
from tests.evaluation.known_ceilings import keep_known
from tests.evaluation.test_sweep import COMMAND, KILLABLE, environment, plan, runs_of

NOISE = planted_noise.NOISE


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log.txt"
    path.touch()
    keep_known()
    monkeypatch.setenv("SWEEP_LOG", str(path))
    monkeypatch.setattr(sweep, "measure", planted_noise.planted)
    return path


def two_starts(**changes: Any) -> SweepPlan:
    """One cell: measured under repeat 1, confirmed under 2 and 3; made again under 4 and 5, then 6 and 7."""
    return plan(axes={"scheme": ["bnb-nf4"]}, probe_s=0, confirm=1, starts=2, **changes)


def confirmed(store: Store, record: SweepRecord) -> list[tuple[int, int, bool]]:
    """Start, repeat of the prompts and whether it counts, of every confirmation."""
    found = [
        (each, store.get(each.run_id)) for cell in record.cells for each in cell.runs if each.stage == "confirm"
    ]
    return sorted((each.start, run.workload.repeat, each.final) for each, run in found if run)


def swept(store: Store, said: list[str]) -> tuple[SweepRecord, SweepRow]:
    host = Host(detect(), tell=lambda stage, _, message: said.append(f"{stage} {message}"), command=COMMAND)
    record = asyncio.run(race(store, begin(store, two_starts(), host.hardware), host))
    return record, sweep_rows(store, record)[0]


def test_a_disturbed_confirmation_is_made_again_from_a_fresh_start_with_new_prompts(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEP_NOISY", "2")
    said: list[str] = []
    with Store() as store:
        record, row = swept(store, said)
        assert confirmed(store, record) == [(0, 2, False), (0, 4, True), (1, 3, True)]
        assert store.count() == len(record.run_ids) == 1 + 3
    assert log.read_text().splitlines() == ["start bnb-nf4 off"] * 4
    # The void one stays in the record, and speaks for nothing.
    assert {run.workload.repeat for run in row.runs} == {3, 4}
    assert row.level == "2 fresh starts, 1 repeated: noisy"
    assert any(each.startswith("confirm 1 of 2: bnb-nf4 (repeated: noisy): ") for each in said)
    assert not any("repeated" in each for each in said if each.startswith("confirm 2 of 2"))


def test_what_is_disturbed_every_time_ends_after_two_repeats_and_is_called_so(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEP_NOISY", "1,2,4,6")  # measuring is never repeated
    with Store() as store:
        record, row = swept(store, [])
        assert MOST_REPEATS == 2
        assert confirmed(store, record) == [(0, 2, False), (0, 4, False), (0, 6, True), (1, 3, True)]
        assert (record.state, record.cells[0].state) == ("done", "done")
    assert row.level == "2 fresh starts, 2 repeated: noisy, 1 still noisy"


def test_a_sweep_killed_between_repeats_counts_on(tmp_path: Path, log: Path) -> None:
    asked = two_starts()
    file = tmp_path / "plan.json"
    file.write_text(asked.to_json())
    command = [sys.executable, "-c", KILLABLE, "sweep", str(file)]
    noisy = environment(log) | {"SWEEP_NOISY": "2,4,6"}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=noisy)
    until = time.monotonic() + 60
    while runs_of(asked) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    with Store() as store:
        killed = Sweeps(store).newest(asked)
        assert killed is not None
        before = killed.run_ids
        assert (killed.state, len(before) >= 2) == ("interrupted", True)
        assert killed.cells[0].run_of("confirm") is None
    second = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=noisy, check=False)
    assert second.returncode == 0, second.stderr
    with Store() as store:
        done = Sweeps(store).get(killed.id)
        assert done is not None
        assert set(before) < set(done.run_ids)
        assert confirmed(store, done) == [(0, 2, False), (0, 4, False), (0, 6, True), (1, 3, True)]
    assert "2 fresh starts, 2 repeated: noisy, 1 still noisy" in second.stderr


@pytest.mark.parametrize(
    ("reasons", "word"),
    [
        ((), ""),
        ((NOISE,), "noisy"),
        (("client-limited: the loop was 3 ms late; other processes used 0.2 cores meanwhile",), "noisy"),
        (("throttled: clocks were held down 20% of the time (power)", NOISE), "throttled"),
        (("shared device: other processes held 2.00 GB of its memory",), "shared device"),
        # As Runs beside a busy process on two cores had it.
        ((NOISE, "client-limited: the load generator's own loop was 4.9 ms late (p99)"), "noisy"),
        # What it would be the second time, too.
        (("client-limited: the loop was 3 ms late",), ""),
        ((NOISE, "smoke test: too small to decide anything"), ""),
        (("warm cache: 12 prompt tokens were not computed",), ""),
    ],
)
def test_only_what_comes_from_outside_alone_is_worth_a_repeat(reasons: tuple[str, ...], word: str) -> None:
    assert disturbance(reasons) == word


def test_no_two_tries_of_a_plan_send_the_same_prompts() -> None:
    cached = plan(base=plan().base.replace({"batching.mode": "continuous", "prefix_cache": True}).model_dump())
    for asked in (plan(starts=3), cached.model_copy(update={"starts": 100})):
        cells = asked.cells()[:2]
        tries = [(start, again) for start in range(asked.starts) for again in range(1 + MOST_REPEATS)]
        sent = [[asked.workload_of("confirm", cell, *each).repeat for each in tries] for cell in cells]
        assert len(set(sent[0])) == len(tries)
        assert (sent[0] == sent[1]) is not cells[0].recipe.prefix_cache
        assert not set(sent[0]) & set(sent[1]) or not cells[0].recipe.prefix_cache
