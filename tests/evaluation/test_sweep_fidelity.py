"""Fidelity inside a sweep, planted: who is judged, who is refused by which figure, what a kill leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcp_core.decision.facts import RunFacts
from mcp_core.decision.recommend import recommend
from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import SweepRecord
from mcp_core.decision.sweeps import Sweeps
from mcp_core.errors import Cancelled, InputError
from mcp_core.evaluation import sweep, sweep_cells, sweep_fidelity
from mcp_core.evaluation.fidelity_time import fidelity_seconds
from mcp_core.evaluation.new_sweep import begin
from mcp_core.evaluation.sweep import Host, race
from mcp_core.evaluation.sweep_budget import budget_of
from mcp_core.evaluation.sweep_cells import check_cells
from mcp_core.evaluation.sweep_table import SweepRow, sweep_rows
from mcp_core.goal import Goal
from mcp_core.hardware import detect
from mcp_core.recipe import Recipe
from mcp_core.results import Comparable
from mcp_core.sweep_plan import Axes, BatchingChoice, SweepPlan
from tests.evaluation import planted_noise
from tests.evaluation.known_ceilings import keep_known
from tests.evaluation.test_sweep import COMMAND, WORKER, seen_or_ended
from tests.tiny_llama import build_tiny_llama

JOB = Path(__file__).parent / "fidelity_stand_in.py"
GOAL = {"users": 2, "objective": "throughput", "fidelity": {"kl_over_floor_max": 30}}
OVER = "KL 300 > 30 times the noise floor"
# The whole command line over planted workers and fidelity, in a process that can be killed.
KILLABLE = f"""
import functools, sys
from mcp_core import cli
from mcp_core.commands import sweep
from tests.evaluation import planted_noise
planted_noise.install()
sweep.Host = functools.partial(
    sweep.Host, command=(sys.executable, {str(WORKER)!r}), job_command=(sys.executable, {str(JOB)!r})
)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else that runs on this machine makes a sweep repeat what it confirms; ceilings are known."""
    keep_known()
    monkeypatch.setattr(sweep, "measure", planted_noise.planted)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log.txt"
    path.touch()
    monkeypatch.setenv("SWEEP_LOG", str(path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return path


@pytest.fixture
def asked(tmp_path: Path) -> SweepPlan:
    """bnb-nf4 is the fastest and far over the limit; bnb-int8 is the slowest."""
    model = {"source": "folder", "id": str(build_tiny_llama(tmp_path / "tiny"))}
    return SweepPlan.from_dict(
        {
            "name": "judged",
            "base": {"model": model, "dtype": "fp32", "threads": 1, "device": "cpu"},
            "axes": {"scheme": ["none", "bnb-nf4", "bnb-int8"]},
            "workload": {
                "name": "w",
                "concurrency": 2,
                "prompt_tokens": 4,
                "output_tokens": 8,
                "warmup_requests": 0,
            },
            "goal": GOAL,
            "probe_s": 0.6,  # half of 0.2 s can go to something else, and the order of probes is judged
            "keep": 1,
            "capacity_s": 0.2,
            "confirm": 0,
            "starts": 2,
            "confirm_s": 0.2,
        }
    )


def host(**changes: Any) -> Host:
    return Host(detect(), command=COMMAND, job_command=(sys.executable, str(JOB)), **changes)


def swept(store: Store, plan: SweepPlan) -> tuple[SweepRecord, dict[str, SweepRow]]:
    record = asyncio.run(race(store, begin(store, plan, detect()), host()))
    return record, {row.cell.name: row for row in sweep_rows(store, record)}


def judged(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith("judge")]


def test_each_configuration_is_judged_once_from_the_fastest_on_and_a_limit_refuses_before_it_is_measured(
    log: Path, asked: SweepPlan
) -> None:
    both = (BatchingChoice(mode="off"), BatchingChoice(mode="continuous"))
    asked = asked.model_copy(update={"axes": asked.axes.model_copy(update={"batching": both}), "confirm": 1})
    with Store() as store:
        record, rows = swept(store, asked)
        assert record.state == "done"
        # Two cells of one scheme share an answer; bnb-int8 cannot be kept and is not judged.
        assert judged(log) == ["judge bnb-nf4", "judge none"]
        for name in ("bnb-nf4 · continuous", "bnb-nf4 · off"):
            row = rows[name]
            assert (row.level, row.reason, row.kl_over_floor) == ("probed, refused", f"{OVER}.", 300.0)
            assert [run.stage for run in row.cell.runs] == ["probe"]
        winner = rows["unquantized · continuous"]
        assert (winner.level, winner.kl_over_floor) == ("2 fresh starts", 0.0)
        assert {run.fidelity.kl_over_floor for run in winner.runs if run.fidelity} == {0.0}
        # The same answer stands on a sibling that was let go, and on none that nobody asked about.
        assert (rows["unquantized · off"].level, rows["unquantized · off"].kl_over_floor) == ("probed", 0.0)
        assert rows["bnb-int8 · off"].kl_over_floor is None
        # By what stands on the Runs alone; whatever else this machine did meanwhile.
        quiet = [run.model_copy(update={"comparable": Comparable()}) for run in store.list()]
        decision = recommend(Goal.from_dict(GOAL), [*map(RunFacts.of, quiet)], store.samples, detect())
    assert decision.winner is not None
    assert decision.winner.recipe.fingerprint == winner.cell.recipe.fingerprint
    reasons = {each.recipe.quantization.scheme: each.reason for each in decision.refused}
    assert reasons == {"bnb-nf4": OVER, "bnb-int8": "KL not measured"}


def test_what_cannot_be_judged_is_a_reason_and_loses_no_run(
    log: Path, asked: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_FAILS", "bnb-nf4")
    with Store() as store:
        _, rows = swept(store, asked)
        assert store.count() == 3 + 1
        failed = rows["bnb-nf4"]
        assert (failed.level, failed.reason) == (
            "probed, failed",
            "KL not measured: Memory ran out while judging.",
        )
        assert judged(log) == ["judge bnb-nf4", "judge none"]
    # Without a limit it goes on, and says why its fidelity is not known.
    free = asked.model_copy(update={"goal": None, "fidelity": True, "axes": Axes(scheme=("bnb-nf4",))})
    with Store() as store:
        _, rows = swept(store, free)
    assert (rows["bnb-nf4"].level, rows["bnb-nf4"].reason) == (
        "measured",
        "Fidelity not measured: Memory ran out while judging.",
    )


def test_a_text_that_the_scheme_was_calibrated_on_is_the_reason_on_every_run(
    log: Path, asked: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known_text(*_: Any, **__: Any) -> Any:
        raise InputError("The scheme was calibrated on this text.")

    monkeypatch.setattr(sweep_fidelity, "make_plan", known_text)
    plan = asked.model_copy(update={"goal": None, "fidelity": True, "axes": Axes(scheme=("bnb-nf4",))})
    with Store() as store:
        _, rows = swept(store, plan)
        assert rows["bnb-nf4"].reason == "Fidelity not measured: The scheme was calibrated on this text."
        assert [run.fidelity and run.fidelity.status for run in store.list()] == ["not-measurable"] * 2
    assert judged(log) == []


def test_without_probes_what_is_refused_is_a_run_that_says_why(log: Path, asked: SweepPlan) -> None:
    two = asked.model_copy(update={"axes": Axes(scheme=("none", "bnb-nf4"))})
    with Store() as store:
        record, _ = swept(store, two.model_copy(update={"probe_s": 0.0}))
        states = {cell.name: cell.state for cell in record.cells}
        assert states == {name: "refused" if name.startswith("bnb-nf4") else "done" for name in states}
        (refused,) = [run for run in store.list() if run.status == "refused"]
        assert refused.failure is not None
        assert refused.failure.message == f"{OVER}."
        assert refused.fidelity is not None


def test_random_weights_are_refused_without_a_job(log: Path, asked: SweepPlan) -> None:
    shape = {"layers": 1, "hidden": 32, "intermediate": 64, "heads": 2, "kv_heads": 1, "vocab": 300, "context": 512}
    base = asked.base.replace({"model": {"source": "shape", "id": "custom", "shape": shape}})
    plan = asked.model_copy(update={"base": base, "axes": Axes(batching=(BatchingChoice(mode="off"),))})
    (cell,) = check_cells(plan, detect())
    assert cell.refused is not None
    assert (cell.refused.kind, cell.refused.hint) == ("fidelity", "Without a fidelity limit it stays in the race.")
    assert cell.refused.message.startswith("KL cannot be measured: ")
    assert "what random weights say means nothing" in cell.refused.message
    with Store() as store, pytest.raises(InputError, match=r"None of the 1 configurations.*cannot be measured"):
        begin(store, plan, detect())
    # Without a limit nothing is refused: its speed is asked for.
    (free,) = check_cells(plan.model_copy(update={"goal": None, "fidelity": True}), detect())
    assert free.refused is None
    assert judged(log) == []


def test_what_can_never_be_judged_is_a_refused_run_before_anything_is_probed(
    log: Path, asked: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_of = sweep_cells.plan_of

    def planted(recipe: Recipe, *given: Any) -> Any:
        made = plan_of(recipe, *given)
        never = recipe.quantization.scheme == "bnb-nf4"
        stored: Any = SimpleNamespace(label="AWQ 4-bit")
        return replace(made, resolved=replace(made.resolved, quantized=stored)) if never else made

    monkeypatch.setattr(sweep_cells, "plan_of", planted)
    with Store() as store:
        record = Sweeps(store).get(begin(store, asked, detect()))
        assert record is not None
        states = {cell.recipe.quantization.scheme: cell.state for cell in record.cells}
        assert states == {"none": "pending", "bnb-nf4": "refused", "bnb-int8": "pending"}
        (run,) = store.list()
    assert (run.status, run.recipe.quantization.scheme) == ("refused", "bnb-nf4")
    assert run.fidelity is not None
    assert run.fidelity.status == "not-measurable"


def test_what_llama_cpp_serves_is_judged_as_all_others(log: Path, asked: SweepPlan) -> None:
    pytest.importorskip("xllamacpp")
    base = Recipe(threads=1, device="cpu")
    plan = asked.model_copy(update={"base": base, "axes": Axes(engine=("llama.cpp",))})
    with Store() as store:
        assert all(each > 60 for each in fidelity_seconds(plan, check_cells(plan, detect()), detect(), store))
        told: list[float | None] = []

        def tell(stage: str, fraction: float | None, _: str) -> None:
            told.extend([fraction] if stage == "fidelity" else [])

        record = asyncio.run(race(store, begin(store, plan, detect()), host(tell=tell)))
        rows = {row.cell.name: row for row in sweep_rows(store, record)}
    assert told == [pytest.approx(0.5 / 3)]  # half of the second of reference, candidate and noise floor
    assert judged(log) == ["judge gguf"]
    assert (rows["llama.cpp"].level, rows["llama.cpp"].kl_over_floor) == ("measured", 4.0)


def test_within_a_wider_limit_the_fastest_goes_on_and_device_time_counts_what_is_not_known_yet(
    log: Path, asked: SweepPlan
) -> None:
    machine = detect()
    asked = asked.model_copy(update={"goal": Goal.from_dict(GOAL | {"fidelity": {"kl_over_floor_max": 301}})})
    with Store() as store:
        checked = check_cells(asked, machine)
        before = fidelity_seconds(asked, checked, machine, store)
        assert len(before) == 3
        assert before[0] > before[1] == before[2]  # the first finds the noise floor
        told = budget_of(asked, checked, (), before).in_words()
        assert "judging at most 3 by fidelity" in told
        record, rows = swept(store, asked)
        assert [cell.name for cell in record.cells if cell.runs[-1].stage == "measure"] == ["bnb-nf4"]
        assert rows["bnb-nf4"].kl_over_floor == 300.0
        assert judged(log) == ["judge bnb-nf4"]
        assert len(fidelity_seconds(asked, checked, machine, store)) == 2
        unasked = asked.model_copy(update={"goal": None})
        assert fidelity_seconds(unasked, checked, machine, store) == ()
        # Without a limit none is judged that is not kept.
        free = unasked.model_copy(update={"fidelity": True})
        assert budget_of(free, checked, (), before).judged == 1


def test_a_sweep_killed_while_it_judges_goes_on_there(
    tmp_path: Path, log: Path, asked: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "plan.json"
    file.write_text(asked.to_json())
    command = [sys.executable, "-c", KILLABLE, "sweep", str(file)]
    hanging = os.environ | {"JUDGE_HANGS": "none"}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=hanging)
    until = time.monotonic() + 60
    while len(judged(log)) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert judged(log) == ["judge bnb-nf4", "judge none"]
    with Store() as store:
        killed = Sweeps(store).newest(asked)
        assert killed is not None
        assert (killed.state, len(killed.run_ids)) == ("interrupted", 3)
    second = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    # What was known is not judged again; what was at work is.
    assert judged(log) == ["judge bnb-nf4", "judge none", "judge none"]
    with Store() as store:
        done = Sweeps(store).get(killed.id)
        assert done is not None
        assert (done.state, len(done.run_ids)) == ("done", 4)
    assert f"1 refused or failed: {OVER}." in second.stderr
    assert "KL x FLOOR" in second.stderr


def test_cancel_ends_the_job_and_keeps_what_is_done(
    log: Path, asked: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_HANGS", "none")

    async def stopped(store: Store, sweep_id: str) -> None:
        judging = asyncio.Event()

        def tell(stage: str, fraction: float | None, message: str) -> None:
            if (stage, message) == ("fidelity", "1 of 1: unquantized: score planted"):
                assert fraction == 0.5
                judging.set()

        task = asyncio.create_task(race(store, sweep_id, host(tell=tell)))
        await seen_or_ended(judging, task)
        task.cancel()
        with pytest.raises(Cancelled, match="stopped"):
            await task

    with Store() as store:
        sweep_id = begin(store, asked, detect())
        asyncio.run(stopped(store, sweep_id))
        record = Sweeps(store).get(sweep_id)
        assert record is not None
        assert (record.state, len(record.run_ids), record.count("running")) == ("cancelled", 3, 0)
        assert record.count("refused") == 1
