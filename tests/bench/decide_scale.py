"""10,000 stored Runs: how long recommending and the Runs page's first view take.

    python -m tests.bench.decide_scale [--runs 10000] [--configurations 200] [--records 200]

Each Run is of one of so many configurations, at one of five loads; a tenth have request records. Prints JSON: wall
time and, as ``_cpu_s``, this process's own. Streamlit's AppTest draws the pages in this process, once to import and
once more as a second visitor's first view; ``runs_page_fresh_process_s`` is the very first page of a new process,
all imports but Streamlit's included. The store is made in a fresh MCP_HOME and deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa

from mcp_core.goal import Goal

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
    from tests.decision.planted import TRAFFIC

    goal = Goal.from_dict(
        {
            "users": 16,
            "workload": TRAFFIC.model_dump(mode="json"),
            "slo": {"ttft_ms": {"p95": 500}, "tpot_ms": {"p95": 40}},
            "price_per_hour": 2.5,
        }
    )
    store, fresh = Store(), Store()
    decisions = Decisions(lambda: store)
    found: dict[str, float] = {}
    with store, fresh:
        found |= timed("facts_first", decisions.facts)
        found |= timed("facts_again", decisions.facts)
        decisions.recommend(goal)  # imports
        found |= timed("recommend", lambda: decisions.recommend(goal))
        found |= timed("recommend_fresh_store", lambda: Decisions(lambda: fresh).recommend(goal))
        found |= timed("list_100", lambda: store.list(100))
        found |= fresh_process()
        found |= pages(goal)
        with store._engine.begin() as connection:  # what opening an older store costs once
            connection.execute(sa.text("DELETE FROM run_facts"))
        found |= timed("facts_made_anew", store.facts)
    found["store_mb"] = round((home / "runs.sqlite").stat().st_size / 1e6, 1)
    return found


FRESH = """
import time
from streamlit.testing.v1 import AppTest
page = AppTest.from_file("pages/runs.py", default_timeout=120)
begin = time.perf_counter()
page.run()
print(time.perf_counter() - begin)
assert page.dataframe
"""


def fresh_process() -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    return {"runs_page_fresh_process_s": round(float(done.stdout), 3)}


def pages(goal: Goal) -> dict[str, float]:
    from streamlit.testing.v1 import AppTest

    found: dict[str, float] = {}
    for name in ("runs", "decide"):
        for visit in ("with_imports", "first_view"):
            page = AppTest.from_file(str(Path("pages", f"{name}.py").absolute()), default_timeout=120)
            if name == "decide":
                page.query_params["goal"] = goal.model_dump_json(exclude_defaults=True)
            found |= timed(f"{name}_page_{visit}", page.run)
            assert not page.exception
            assert page.dataframe
    return found


def timed(name: str, act: Callable[[], object]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return {
        f"{name}_s": round(time.perf_counter() - wall, 3),
        f"{name}_cpu_s": round(time.process_time() - cpu, 3),
    }


if __name__ == "__main__":
    main()
