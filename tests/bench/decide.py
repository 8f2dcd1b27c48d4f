"""``make bench-decide``: a sweep of the bundled model that survives a kill -9, and the decision that it comes to.

Runs the preset ``bundled`` (26 configurations: schemes × batching × engine; 24 where xllamacpp is not installed)
within its fidelity limit through the command line in a home of its own, kills it with SIGKILL when half of the
probes are stored, resumes it, asks ``mcp-core recommend``, and measures winner and runner-up three times more from
fresh starts, in turn. What is known stands in ``results.json`` of that home after every step. Prints a table and
exits 1 where a promise does not hold: ≥ 24 configurations, ≤ 40 min, every step once, the winner keeps its place.
``--small`` is a trial of some minutes with 4 configurations.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import SweepRecord
from mcp_core.decision.sweeps import Sweeps
from mcp_core.evaluation.sweep_table import sweep_rows
from mcp_core.goal import Goal
from mcp_core.hardware import detect
from mcp_core.sweep_plan import Axes, BatchingChoice, SweepPlan
from mcp_core.sweep_presets import sweep_preset

CLI = (sys.executable, "-m", "mcp_core.cli")
LIMIT_S = 40 * 60
LEAST = 24
REMEASURED = 3
# The winner may be this much behind the runner-up when both are measured anew: closer is a tie.
TIE = 0.03
REPEAT_FROM = 1000


def small(plan: SweepPlan) -> SweepPlan:
    axes = Axes(
        engine=("transformers", "llama.cpp"),
        scheme=("none", "torchao-int8-weight-only", "bnb-nf4", "gguf"),
        batching=(BatchingChoice(mode="continuous", max_requests=8),),
    )
    shorter = {"probe_s": 5, "keep": 3, "capacity_s": 10, "confirm": 2, "starts": 2, "confirm_s": 8}
    return plan.model_copy(update={"name": "bundled-small", "axes": axes, **shorter})


class Results:
    """What is known so far, written after every step."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "results.json"
        self._began_s = time.monotonic()
        self._found: dict[str, Any] = {}

    def add(self, **found: Any) -> None:
        self._found |= found | {"minutes": round((time.monotonic() - self._began_s) / 60, 2)}
        self._file.write_text(json.dumps(self._found, indent=2) + "\n")
        print(f"{self._found['minutes']:5.1f} min  {', '.join(found)}", file=sys.stderr, flush=True)


def record_of(plan: SweepPlan) -> SweepRecord | None:
    with Store() as store:
        return Sweeps(store).newest(plan)


def children_of(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def swept(plan: SweepPlan, folder: Path, results: Results) -> dict[str, Any]:
    """Start it, kill it halfway, resume it to the end."""
    file = folder / "plan.json"
    file.write_text(plan.to_json())
    command = [*CLI, "sweep", str(file), "--out", str(folder / "runs.jsonl")]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    half = 0
    while first.poll() is None:
        time.sleep(2.0)  # looking takes some of the cores that are measured on
        record = record_of(plan)
        half = 0 if record is None else sum(cell.state != "refused" for cell in record.cells) // 2
        if record is not None and len(record.run_ids) >= half > 0:
            break
    workers = children_of(first.pid)
    first.send_signal(signal.SIGKILL)
    first.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    killed = record_of(plan)
    assert killed is not None
    print(
        f"killed with {len(killed.run_ids)} Runs stored, state {killed.state}, workers left: {len(alive)}",
        flush=True,
    )
    results.add(killed_with_runs=len(killed.run_ids), state_after_kill=killed.state, workers_left=len(alive))
    subprocess.run([*command, "--resume"], stdout=subprocess.DEVNULL, check=False)
    return {"before": set(killed.run_ids), "orphans": len(alive)}


def steps_once(record: SweepRecord) -> bool:
    steps = [(cell.position, run.stage, run.start) for cell in record.cells for run in cell.runs if run.final]
    return len(steps) == len(set(steps))


def recommend(goal: Goal, folder: Path) -> dict[str, Any]:
    file = folder / "goal.json"
    file.write_text(goal.to_json())
    ended = subprocess.run([*CLI, "recommend", str(file), "--json"], capture_output=True, text=True, check=False)
    if not ended.stdout:
        raise SystemExit(f"recommend failed: {ended.stderr}")
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def measured_again(plan: SweepPlan, choice: dict[str, Any], repeat: int, folder: Path) -> float:
    """Output tokens/s of one Recipe from a fresh start with new prompts."""
    recipe, workload = folder / "recipe.json", folder / "workload.json"
    recipe.write_text(json.dumps(choice["recipe"]))
    load = plan.load().replace({"duration_s": plan.confirm_s, "repeat": repeat})
    workload.write_text(load.model_dump_json())
    command = [*CLI, "bench", str(recipe), str(workload), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if not ended.stdout:
        raise SystemExit(f"{choice['name']}: {ended.stderr}")
    run = json.loads(ended.stdout)
    if run["status"] != "ok":
        raise SystemExit(f"{choice['name']}: {run['failure']}")
    return float(run["measurement"]["output_tok_s"])


def keeps_its_place(plan: SweepPlan, decision: dict[str, Any], folder: Path, results: Results) -> bool:
    """Winner and runner-up three times more, in turn, then asked again."""
    choices = [decision["winner"], *decision["runners_up"][:1]]
    figures: dict[str, list[float]] = {choice["name"]: [] for choice in choices}
    for number in range(REMEASURED):
        for choice in choices:
            figures[choice["name"]].append(measured_again(plan, choice, REPEAT_FROM + number, folder))
            results.add(measured_again_tok_s=figures)
    again = recommend(plan.goal or Goal(), folder)
    for name, found in figures.items():
        print(f"measured again: {name}: {', '.join(f'{value:.1f}' for value in found)} tok/s")
    means = [mean(found) for found in figures.values()]
    ratio = means[0] / means[1] if len(means) > 1 else float("inf")
    same = again["winner"] is not None and again["winner"]["recipe"] == decision["winner"]["recipe"]
    results.add(winner_over_runner_up=ratio, asked_again=again["answer"])
    print(f"winner / runner-up {ratio:.2f}; asked again: {again['answer']}")
    return same and ratio > 1 - TIE


def rows_of(record: SweepRecord) -> list[dict[str, Any]]:
    """Every configuration that was not refused before the sweep began, best first."""
    with Store() as store:
        rows = sweep_rows(store, record)
    return [
        {
            "name": row.cell.name,
            "how_far": row.level,
            "output_tok_s": row.run.measurement.output_tok_s if row.run and row.run.measurement else None,
            "kl_over_floor": row.kl_over_floor,
            "reason": row.reason,
        }
        for row in rows
        if row.cell.runs
    ]


def show(rows: list[dict[str, Any]], decision: dict[str, Any]) -> None:
    print(f"{'CONFIGURATION':56} {'HOW FAR':16} {'tok/s':>7} {'KL x floor':>10}  REASON")
    for row in rows:
        speed, kl = (
            "-" if value is None else f"{value:.3g}" for value in (row["output_tok_s"], row["kl_over_floor"])
        )
        print(f"{row['name']:56} {row['how_far']:16} {speed:>7} {kl:>10}  {row['reason']}".rstrip())
    print(f"decision: {decision['answer']} ({decision['evidence']})")
    for choice in decision["runners_up"][:3]:
        print(f"  runner-up: {choice['name']}")
    for each in decision["refused"]:
        print(f"  refused: {each['name']}: {each['reason']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a trial with 4 configurations")
    parser.add_argument("--home", type=Path, help="MCP_HOME to use; a new one by default")
    options = parser.parse_args()
    plan = sweep_preset("bundled", detect())
    plan = small(plan) if options.small else plan
    folder = options.home or Path(tempfile.mkdtemp(prefix="mcp-bench-decide-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MCP_HOME"] = str(folder)
    print(f"home {folder}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    results = Results(folder)
    results.add(plan=plan.name, configurations=len(plan.cells()), load_average=os.getloadavg()[0])
    began_s = time.monotonic()
    swept_ = swept(plan, folder, results)
    took_s = time.monotonic() - began_s
    record = record_of(plan)
    assert record is not None
    rows = rows_of(record)
    results.add(sweep_minutes=took_s / 60, state=record.state, rows=rows)
    decision = recommend(plan.goal or Goal(), folder)
    results.add(
        answer=decision["answer"],
        evidence=decision["evidence"],
        winner=decision["winner"] and decision["winner"]["name"],
        runners_up=[each["name"] for each in decision["runners_up"]],
        refused=[{"name": each["name"], "reason": each["reason"]} for each in decision["refused"]],
    )
    show(rows, decision)
    print(f"sweep took {took_s / 60:.1f} min, with the kill and the resume; {len(record.run_ids)} Runs", flush=True)
    kept = decision["winner"] is not None and keeps_its_place(plan, decision, folder, results)
    least = 4 if options.small else LEAST
    promises = {
        f"at least {least} configurations": len(rows) >= least,
        "within 40 min": took_s <= LIMIT_S,
        "no worker outlives the kill": swept_["orphans"] == 0,
        "every Run from before the kill is kept": swept_["before"] <= set(record.run_ids),
        "every step once": steps_once(record),
        "the sweep came to its end": record.state == "done",
        "a winner whose fidelity was measured within the limit, which keeps its place": kept,
    }
    results.add(promises=promises)
    for promise, holds in promises.items():
        print(f"{'ok  ' if holds else 'FAIL'} {promise}")
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
