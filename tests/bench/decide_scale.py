"""10,000 stored Runs: how long recommending and the Runs page's first view take.

    python -m tests.bench.decide_scale [--runs 10000] [--configurations 200] [--records 200]

Each Run is of one of so many configurations, at one of five loads; a tenth have request records. Prints JSON. The
store is made in a fresh MCP_HOME and deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa

LOADS = (1, 4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--configurations", type=int, default=200)
    parser.add_argument("--records", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["MCP_HOME"] = home
        os.environ.pop("MCP_STORE_URL", None)
        found = {"runs": options.runs, "configurations": options.configurations}
        print(json.dumps(found | {"fill_s": fill(options), **measure(Path(home))}, indent=2))


def fill(options: argparse.Namespace) -> float:
    from mcp_core.decision.store import Store
    from tests.decision.planted import BEGIN, Law, planted_run

    begin, numbers = time.perf_counter(), random.Random(0)
    laws = [
        Law(tpot_ms=numbers.uniform(8, 40), changes={"batching.max_requests": 1 + number})
        for number in range(options.configurations)
    ]
    templates: dict[tuple[int, int, bool], tuple] = {}
    with Store() as store:
        for number in range(options.runs):
            choice, load, kept = number % len(laws), LOADS[number // len(laws) % len(LOADS)], number % 10 == 0
            if (choice, load, kept) not in templates:
                templates[choice, load, kept] = planted_run(laws[choice], load, requests=options.records)
            run, records = templates[choice, load, kept]
            changes = {
                "id": f"run-{number:06}",
                "created": BEGIN + timedelta(minutes=number),
                "load_s": 10 + number / 1e6,
            }
            store.add(run.model_copy(update=changes), records if kept else ())
    return round(time.perf_counter() - begin, 1)


def measure(home: Path) -> dict[str, float]:
    from mcp_core.decision.store import Store
    from mcp_core.decisions import Decisions
    from mcp_core.goal import Goal
    from tests.decision.planted import TRAFFIC

    goal = Goal.from_dict({
        "users": 16,
        "workload": TRAFFIC.model_dump(mode="json"),
        "slo": {"ttft_ms": {"p95": 500}, "tpot_ms": {"p95": 40}},
        "price_per_hour": 2.5,
    })
    found = dict(_rows(goal, lambda: Decisions(Store)))
    with Store() as store:
        begin = time.perf_counter()
        store.list(100)
        found["list_100_s"] = time.perf_counter() - begin
        with store._engine.begin() as connection:  # what opening an older store costs once
            connection.execute(sa.text("DELETE FROM run_facts"))
        begin = time.perf_counter()
        store.facts()
        found["facts_made_anew_s"] = time.perf_counter() - begin
    found["store_mb"] = (home / "runs.sqlite").stat().st_size / 1e6 if (home / "runs.sqlite").exists() else 0.0
    return {name: round(value, 3) for name, value in found.items()}


def _rows(goal, decisions) -> Iterator[tuple[str, float]]:
    from mcp_core.decision.store import Store

    store = Store()
    mine = type(decisions())(lambda: store)
    for name, act in (
        ("facts_first_s", mine.facts),
        ("facts_again_s", mine.facts),
        ("recommend_s", lambda: mine.recommend(goal)),
        ("recommend_again_s", lambda: mine.recommend(goal)),
    ):
        begin = time.perf_counter()
        act()
        yield name, time.perf_counter() - begin
    begin = time.perf_counter()
    fresh = Store()
    type(decisions())(lambda: fresh).recommend(goal)
    yield "recommend_fresh_store_s", time.perf_counter() - begin


if __name__ == "__main__":
    main()
